"""Machine records on disk, and what crashes leave."""

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from castoff.errors import Conflict, Invalid, NotFound
from castoff.machine.identity import Owner
from castoff.machine.model import MachineRecord, MachineState, check_name, new_machine_id
from castoff.machine.records import MachineRecords


def _record(name: str = "", **more: object) -> MachineRecord:
    identity = new_machine_id()
    fields = {"owner": Owner.this(), "created": time.time(), "keep": False, "image": "alpine:3", "state": MachineState.CREATING}
    return MachineRecord(**({"id": identity, "name": name or identity} | fields | more))


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """By id and by name, with the state of its VMM."""
    records = MachineRecords(tmp_path / "machines")
    record = _record("web", vmm="qemu", vmm_state={"pid": 7, "socket": "x"})
    assert records.add(record) == record
    assert records.path(record.id).is_dir()
    assert records.get("web") == records.get(record.id) == record
    assert list(records) == [record]


def test_names_are_unique(tmp_path: Path) -> None:
    """A second machine of the same name is refused, and nothing of it is left."""
    records = MachineRecords(tmp_path)
    records.add(_record("web"))
    with pytest.raises(Conflict):
        records.add(_record("web"))
    assert len(list(tmp_path.iterdir())) == 1


def test_no_two_machines_have_a_user(tmp_path: Path) -> None:
    """The first choice where it is free, the next that is free otherwise; what a removed machine had is given again."""
    tmp_path = tmp_path / "machines"
    records = MachineRecords(tmp_path)
    users = [records.add(_record(), [7, 8, 9]) for _ in range(3)]
    assert [record.user for record in users] == [7, 8, 9] == sorted(record.user or 0 for record in records)
    with pytest.raises(Conflict, match="every user id"):
        records.add(_record(), [7, 8, 9])
    assert len(list(tmp_path.iterdir())) == 3
    records.remove(users[1].id)
    assert records.add(_record(), [7, 8, 9]).user == 8
    records.remove(users[2].id)
    claims = tmp_path.with_name("machines.users")
    assert sorted(claim.name for claim in claims.iterdir()) == ["7", "8"]
    (claims / "9").symlink_to("00000000000000")  # of one that was killed before its machine was there
    records.sweep_debris()
    assert sorted(claim.name for claim in claims.iterdir()) == ["7", "8"]
    for record in list(records):
        records.remove(record.id)
    assert not claims.exists()
    userless = records.add(_record(), ())
    assert userless.user is None


def _add_all(directory: Path, count: int) -> None:
    records = MachineRecords(directory)
    for _ in range(count):
        records.add(_record(), range(1000, 1100))


def test_users_are_given_by_one_process_at_a_time(tmp_path: Path) -> None:
    """Several that all want the same one first."""
    context = multiprocessing.get_context("spawn")
    adding = [context.Process(target=_add_all, args=(tmp_path / "machines", 8)) for _ in range(3)]
    for process in adding:
        process.start()
    for process in adding:
        process.join()
    assert {record.user for record in MachineRecords(tmp_path / "machines")} == set(range(1000, 1024))


def test_removal_is_idempotent_and_whole(tmp_path: Path) -> None:
    """A removed machine leaves nothing, and removing it again is no failure."""
    records = MachineRecords(tmp_path)
    record = _record()
    records.add(record)
    (records.path(record.id) / "disk").write_bytes(b"x" * 100)
    records.remove(record.id)
    records.remove(record.id)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound):
        records.get(record.id)


def _dead_owner() -> Owner:
    """The identity of a process that has ended."""
    code = "from castoff.machine.identity import Owner; print(Owner.this())"
    return Owner.parse(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip())


def test_debris_of_the_dead_is_swept_and_that_of_the_living_is_not(tmp_path: Path) -> None:
    """What a crash left half made or half deleted goes; what a living process works on, and strangers' files, stay."""
    records = MachineRecords(tmp_path)
    dead, alive = tmp_path / f".{_dead_owner()}.{new_machine_id()}", tmp_path / f".{Owner.this()}.{new_machine_id()}"
    stranger = tmp_path / ".lost+found"
    for directory in (dead, alive, stranger):
        directory.mkdir()
        (directory / "disk").touch()
    records.sweep_debris()
    assert sorted(tmp_path.iterdir()) == sorted([alive, stranger])


def test_an_owner_is_alive_until_it_ends_even_as_a_zombie() -> None:
    """Pid and start time name a process; a zombie runs nothing any more."""
    assert Owner.this().alive()
    child = subprocess.Popen(
        [sys.executable, "-c", "from castoff.machine.identity import Owner; print(Owner.this(), flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdin is not None
    owner = Owner.parse(child.stdout.readline().strip())
    assert owner.pid == child.pid and owner.alive()
    child.stdin.close()
    deadline = time.monotonic() + 10
    while owner.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not owner.alive()  # not waited for yet: a zombie
    child.wait()
    child.stdout.close()
    assert not owner.alive()


def test_a_recycled_pid_is_not_the_owner() -> None:
    """The same pid with another start time, or of another boot, is somebody else."""
    this = Owner.this()
    assert not Owner(this.pid, this.started + 1, this.boot).alive()
    assert not Owner(this.pid, this.started, "00000000").alive()


def _other() -> bytes:
    """A sound record of another machine."""
    return msgspec.json.encode(_record())


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"id": "x"}', b"\xff" * 10, b'{"version":1,"id":"../../etc"}', _other()])
def test_a_broken_record_is_told_apart_and_hides_no_others(tmp_path: Path, damage: bytes) -> None:
    """Listing goes on; the broken one is named with its directory."""
    records = MachineRecords(tmp_path)
    good, bad = _record(), _record()
    records.add(good)
    (records.path(records.add(bad).id) / "machine.json").write_bytes(damage)
    assert list(records) == [good]
    assert [path.name for path, _ in records.broken()] == [bad.id]


@pytest.mark.parametrize("text", ["", "..", "abc", "../../../../etc1", "ABCDEF01234567", "0" * 15])
def test_ids_from_outside_are_checked(text: str, tmp_path: Path) -> None:
    """No id leads out of the machines' directory."""
    with pytest.raises(Invalid):
        MachineRecords(tmp_path).path(text)


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", ".hidden", "x" * 64, "ü"])
def test_names_from_outside_are_checked(name: str) -> None:
    """A name could be a host name, and names no file."""
    with pytest.raises(Invalid):
        check_name(name)


def _remove(directory: Path, identity: str) -> None:
    MachineRecords(directory).remove(identity)


def test_several_processes_may_remove_one_machine(tmp_path: Path) -> None:
    """One does it, the others find it done; nobody fails."""
    records = MachineRecords(tmp_path)
    record = _record()
    directory = records.path(records.add(record).id)
    for index in range(200):
        (directory / str(index)).touch()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_remove, args=(tmp_path, record.id)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []
