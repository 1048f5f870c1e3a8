"""The keeper: what it is given it holds, whoever dies; it starts hydrators, and ends when there is nothing to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from castoff.errors import Conflict, Unavailable
from castoff.hydrate.descriptors import connect as connect_packets
from castoff.hydrate.descriptors import listen, receive, send
from castoff.hydrate.keeper_client import connect, take_seat

SLEEP = ("/bin/sleep", "1000")


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def said(state: Path, words: str) -> list[int]:
    """The pids in lines of the log with these words after the pid."""
    log = state / "hydrate" / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split(words)[0].split()[-1]) for line in lines if words in line]


def keepers(state: Path) -> list[int]:
    return said(state, f" keeps {state}")


def the_keeper(state: Path) -> int:
    """Pid of the only one; it can be connected to a moment before it says who it is."""
    eventually(lambda: bool(keepers(state)))
    (pid,) = keepers(state)
    return pid


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state directory whose keepers and hydrators are ended with the test."""
    path = tmp_path / ("a-directory-with-a-name-that-makes-its-sockets-too-long-for-an-address-" + 60 * "x")
    path.mkdir()
    yield path
    for pid in keepers(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, keepers(path))))
    for pid in said(path, " started"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def content(descriptor: int) -> bytes:
    return os.pread(descriptor, 100, 0)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two open files, with no name."""
    found = []
    for text in (b"group", b"fill"):
        found.append(os.memfd_create("test"))
        os.write(found[-1], text)
    yield found[0], found[1]
    for descriptor in found:
        os.close(descriptor)


def test_packets_carry_descriptors_and_are_whole(tmp_path: Path, files: tuple[int, int]) -> None:
    """What is sent arrives as one packet, with descriptors of the receiver's own that do not survive an exec; then the end."""
    with listen(tmp_path / "s") as server, connect_packets(tmp_path / "s") as client:
        ours, _ = server.accept()
        with ours:
            send(client, b"one", files)
            send(client, b"two")
            data, (group, fill) = receive(ours)
            assert (data, content(group), content(fill), os.get_inheritable(group)) == (b"one", b"group", b"fill", False)
            assert receive(ours) == (b"two", ())
            client.close()
            with pytest.raises(EOFError):
                receive(ours)
            os.close(group)
            os.close(fill)


def test_a_packet_with_too_many_descriptors_is_refused_whole(tmp_path: Path, files: tuple[int, int]) -> None:
    """None of them stays open."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(list(Path("/proc/self/fd").iterdir()))
    send(first, b"many", files * 30)
    with pytest.raises(OSError, match="cut"):
        receive(second)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    first.close()
    second.close()


def test_what_is_kept_can_be_taken_by_another_connection(state: Path, files: tuple[int, int]) -> None:
    """Also after the one who gave it has closed everything; what is dropped is gone."""
    giver = connect(state, command=SLEEP)
    copies = [os.dup(descriptor) for descriptor in files]
    giver.keep("m1", copies)
    giver.keep("/a path", files[:1])
    giver.close()
    for descriptor in copies:
        os.close(descriptor)
    taker = connect(state, command=SLEEP)
    taken = taker.take()
    assert {name: [content(descriptor) for descriptor in fds] for name, fds in taken.items()} == {
        "m1": [b"group", b"fill"],
        "/a path": [b"group"],
    }
    assert taker.take() == taken
    taker.drop("m1")
    taker.drop("m1")
    taker.close()
    other = connect(state, command=SLEEP)
    found = other.take()
    assert list(found) == ["/a path"]
    for fds in [*taken.values(), *found.values()]:
        for descriptor in fds:
            os.close(descriptor)
    other.close()
    assert the_keeper(state)


def test_a_hydrator_that_dies_is_started_again(state: Path, files: tuple[int, int]) -> None:
    """While anything is kept, as often as it dies, with a pause that grows; when nothing is, it is not."""
    keeper = connect(state, command=SLEEP)
    keeper.start_hydrator()
    keeper.start_hydrator()
    keeper.keep("m1", files)
    for round_ in range(1, 4):
        eventually(lambda round_=round_: len(said(state, " started")) == round_)  # type: ignore[misc]
        os.kill(said(state, " started")[-1], signal.SIGKILL)
    eventually(lambda: len(said(state, " started")) == 4)
    keeper.drop("m1")
    os.kill(said(state, " started")[-1], signal.SIGKILL)
    eventually(lambda: len(said(state, " ended")) == 4)
    time.sleep(0.3)
    assert len(said(state, " started")) == 4
    keeper.close()


def test_a_keeper_with_nothing_to_keep_ends(state: Path) -> None:
    """Once nobody is connected, no hydrator runs and it holds nothing; the next one starts as the first did."""
    keeper = connect(state, command=SLEEP)
    pid = the_keeper(state)
    time.sleep(3)
    assert is_alive(pid)  # we are connected
    keeper.close()
    eventually(lambda: not is_alive(pid))
    assert not (state / "hydrate" / "keeper.sock").exists()
    other = connect(state, command=SLEEP)
    assert other.take() == {}
    other.close()


def test_many_who_start_a_keeper_at_once_get_the_same(state: Path) -> None:
    """One becomes the keeper."""
    command = f"from pathlib import Path; from castoff.hydrate.keeper_client import connect; connect(Path({str(state)!r})).take()"
    several = [subprocess.Popen([sys.executable, "-c", command]) for _ in range(4)]
    assert [process.wait(60) for process in several] == [0] * 4
    assert the_keeper(state)


async def test_a_keeper_that_dies_is_replaced_with_all_it_held(state: Path, files: tuple[int, int]) -> None:
    """guard() starts another, which holds the same and knows the hydrator; requests that find it gone do so too."""
    keeper = connect(state, command=SLEEP)
    keeper.register()
    keeper.keep("m1", files)
    the_keeper(state)
    guarding = asyncio.create_task(keeper.guard())
    for round_ in range(1, 4):
        os.kill(keepers(state)[-1], signal.SIGKILL)
        if round_ == 2:
            await asyncio.to_thread(keeper.keep, "m2", files)
        while len(keepers(state)) < round_ + 1:
            await asyncio.sleep(0.01)
    other = await asyncio.to_thread(connect, state)
    while len(taken := other.take()) < 2:
        await asyncio.sleep(0.01)
    assert [content(descriptor) for descriptor in taken["m1"]] == [b"group", b"fill"]
    other.start_hydrator()
    assert said(state, " started") == []  # we are it
    guarding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await guarding
    for fds in taken.values():
        for descriptor in fds:
            os.close(descriptor)
    other.close()
    keeper.close()


def test_a_keeper_outlives_signals_that_end_sessions(state: Path, files: tuple[int, int]) -> None:
    """SIGTERM, SIGHUP and SIGINT leave it as it is."""
    keeper = connect(state, command=SLEEP)
    keeper.keep("m1", files)
    pid = the_keeper(state)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(pid, number)
    time.sleep(0.1)
    assert is_alive(pid)
    keeper.drop("m1")
    keeper.close()


def test_a_keeper_is_small(state: Path) -> None:
    """It imports nothing of castoff but its packets; its memory is that of a bare Python."""
    keeper = connect(state, command=SLEEP)
    pid = the_keeper(state)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(status["RssAnon"].split()[0]) < 8_000
    keeper.close()
    command = "import sys, castoff.hydrate.keeper; print(sorted(name for name in sys.modules if name.startswith('castoff')))"
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(["castoff", "castoff.hydrate", "castoff.hydrate.descriptors", "castoff.hydrate.keeper"])


def test_a_request_that_is_not_understood_harms_nothing(state: Path, files: tuple[int, int]) -> None:
    """The connection goes on."""
    keeper = connect(state, command=SLEEP)
    with connect_packets(state / "hydrate" / "keeper.sock") as raw:
        for line in (b"keep", b"keep nothing", b"\xff\xfe", b"take", b"hydrator", b"hydrator"):
            send(raw, line, files if line == b"hydrator" else ())
            assert receive(raw)[0].startswith(b"error")
        send(raw, b"take nothing")
        assert receive(raw) == (b"none", ())
    assert keeper.take() == {}
    keeper.close()


def test_one_hydrator_has_the_seat(tmp_path: Path) -> None:
    """Another is told so; after its end, the seat is free."""
    seat = take_seat(tmp_path)
    with pytest.raises(Conflict):
        take_seat(tmp_path, timeout=0.01)
    os.close(seat)
    os.close(take_seat(tmp_path, timeout=0.01))


def test_a_keeper_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The last line of what it said, and where the rest is."""
    (tmp_path / "hydrate").mkdir()
    (tmp_path / "hydrate" / "keeper.lock").symlink_to("elsewhere")
    with pytest.raises(Unavailable, match=r"does not start: .*keeper\.lock"):
        connect(tmp_path)


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["-h"], 0), ([], 2), (["--state", "x"], 2)])
def test_what_is_no_state_directory_makes_none(tmp_path: Path, words: list[str], status: int) -> None:
    """The usage is told, and no directory of that name is made."""
    command = [sys.executable, "-m", "castoff.hydrate.keeper", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == status
    assert "usage: python -m castoff.hydrate.keeper STATE" in (done.stderr if status else done.stdout)
    assert list(tmp_path.iterdir()) == []
