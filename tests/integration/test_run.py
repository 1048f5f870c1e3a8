"""`castoff run`, as people and scripts use it: real images, a real QEMU, the command as a process."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import daemons
from machines import Castoff, busybox_image, castoff_state, environment, eventually, is_running
from oci_builder import write_layout


@pytest.fixture(name="castoff", scope="module")
def _castoff(kernels: Path) -> Iterator[Castoff]:
    """One state directory for all: the first run converts, the others are warm."""
    with castoff_state(kernels) as castoff:
        yield castoff


@pytest.fixture(autouse=True)
def _nothing_is_left(castoff: Castoff) -> Iterator[None]:
    """No run leaves a machine behind, however it ended."""
    yield
    if castoff.state.exists():
        assert castoff.machines == []


def test_streams_come_apart_unmixed_and_whole_and_the_exit_code_is_the_commands(castoff: Castoff) -> None:
    """Every byte value, megabytes of them, nothing of the kernel's and nothing of castoff's."""
    script = "head -c 3000000 /dev/zero; printf '\\0\\377\\r\\n\\033[0m'; printf 'to stderr\\r\\n' >&2; exit 7"
    done = castoff.run("sh", "-c", script, flags=["--quiet"])
    assert done.returncode == 7
    assert done.stdout == bytes(3_000_000) + b"\0\xff\r\n\x1b[0m"
    assert done.stderr == b"to stderr\r\n"


def test_the_command_finds_what_the_image_and_the_flags_say(castoff: Castoff, tmp_path: Path) -> None:
    """User and groups, directory, variables of image, file and flags, host name, processors, memory, disk, arguments."""
    (tmp_path / "env").write_text("A=file\nFILE=yes\n")
    script = "id; pwd; env | sort; hostname; nproc; head -1 /proc/meminfo; df -k / | tail -1; cat /srv/data; "
    script += 'for a in "$@"; do echo "<$a>"; done'
    flags = ["-u", "app", "-w", "/srv", "-e", "A=flag", "-e", "HERE", "--env-file", str(tmp_path / "env"), "--hostname", "web"]
    flags += ["--cpus", "2", "--memory", "256M", "--disk-size", "3G", "--entrypoint", "sh"]
    done = castoff.run(
        "-c", script, "name", "one", "two words", "", "-x", os.fsdecode(b"\xff"), flags=flags, env=environment(HERE="from here")
    )
    assert done.returncode == 0, done.stderr
    lines = os.fsdecode(done.stdout).splitlines()
    assert lines[0] == "uid=1000(app) gid=1000(app) groups=1000(app),1001(extra)"
    assert lines[1] == "/srv"
    assert {
        "A=flag",
        "FILE=yes",
        "FROM_IMAGE=yes",
        "HERE=from here",
        "HOME=/home/app",
        "HOSTNAME=web",
        "PATH=/bin:/dev/castoff/bin",
    } <= set(lines)
    rest = lines[lines.index("web") :]
    assert rest[1] == "2"
    assert 150_000 < int(rest[2].split()[1]) <= 262_144
    assert 2_500_000 < int(rest[3].split()[1]) <= 3 * 1024 * 1024
    assert rest[4:] == ["from the image", "<one>", "<two words>", "<>", "<-x>", os.fsdecode(b"<\xff>")]


def test_input_reaches_the_command_whole_and_ends(castoff: Castoff) -> None:
    """More than any buffer on the way holds; the end of input is the command's end of input."""
    data = os.urandom(2_000_000)
    done = castoff.run("sha256sum", flags=["-i"], input=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


@pytest.fixture(name="plain", scope="module")
def _plain(castoff: Castoff, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[bytes], bytes, Path]:
    """A run of `cat` without any flag but --timeline: how it ended, what was left of its input, its timeline's file."""
    file = tmp_path_factory.mktemp("plain") / "t.json"
    reader, writer = os.pipe()
    os.write(writer, b"mine")
    done = castoff.run("cat", flags=["--timeline", str(file)], stdin=reader)
    left = os.read(reader, 10)
    os.close(reader)
    os.close(writer)
    return done, left, file


def test_without_i_the_command_has_no_input(plain: tuple[subprocess.CompletedProcess[bytes], bytes, Path]) -> None:
    """And castoff's own is left alone."""
    done, left, _ = plain
    assert (done.returncode, done.stdout, left) == (0, b"", b"mine")


class Screen:
    """A terminal that castoff runs on, and what appears on it."""

    def __init__(self, castoff: Castoff, *words: str, flags: list[str], rows: int, columns: int) -> None:
        self.leader, follower = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(follower)
        self.process = subprocess.Popen(
            castoff.command("run", *flags, castoff.image, *words),
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.follower = follower
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.leader, keys)

    def until(self, text: bytes, timeout: float = 30) -> bytes:
        """What appeared up to ``text``."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.leader], [], [], 0.1)[0]:
                self.seen += os.read(self.leader, 65536)
        found, _, self.seen = self.seen.partition(text)
        return found

    def end(self) -> int:
        code = self.process.wait(30)
        assert termios.tcgetattr(self.follower) == self.before
        os.close(self.follower)
        os.close(self.leader)
        return code


def test_a_terminal_is_one_inside_too_and_follows_its_size(castoff: Castoff) -> None:
    """Size at first and after each change, Ctrl-C inside, raw mode undone, the exit code."""
    screen = Screen(castoff, "sh", flags=["-i", "-t"], rows=33, columns=111)
    screen.until(b"# ")
    screen.type(b"stty size; tty; echo TERM=$TERM\r")
    screen.until(b"33 111\r\n/dev/pts/")
    screen.until(b"TERM=xterm\r\n")
    screen.resize(44, 122)
    screen.process.send_signal(signal.SIGWINCH)
    time.sleep(0.5)
    screen.type(b"stty size\r")
    screen.until(b"44 122")
    screen.type(b"sleep 1000\r")
    screen.until(b"sleep 1000\r\n")
    time.sleep(0.5)
    screen.type(b"\x03")
    screen.until(b"# ")
    screen.type(b"exit 9\r")
    assert screen.end() == 9


def test_ctrl_brackets_kill_a_machine_that_took_the_terminal(castoff: Castoff) -> None:
    """Where Ctrl-C belongs to the guest there is another way out, and the terminal is as it was."""
    screen = Screen(castoff, "sh", "-c", "trap '' INT; echo up; sleep 1000", flags=["-i", "-t"], rows=24, columns=80)
    screen.until(b"up")
    screen.type(b"\x1d\x1d\x1d")
    assert screen.end() == 137


def test_signals_reach_the_command(castoff: Castoff) -> None:
    """It decides what they mean."""
    script = "".join(f"trap 'echo got {name}' {name}; " for name in ("INT", "USR1")) + "trap 'echo got TERM; exit 41' TERM; "
    with castoff.start("sh", "-c", f"{script} echo up; while :; do sleep 0.1; done") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        for number in (signal.SIGINT, signal.SIGUSR1):
            process.send_signal(number)
            assert process.stdout.readline() == f"got {number.name[3:]}\n".encode()
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (41, b"got TERM\n", b"")


def test_a_command_that_a_signal_ended_says_so(castoff: Castoff) -> None:
    """128 + n, as a shell."""
    with castoff.start("sh", "-c", "echo up; exec sleep 1000") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130


def test_insisting_kills_a_machine_whose_command_does_not_listen(castoff: Castoff) -> None:
    """The third Ctrl-C ends what the first did not."""
    with castoff.start("sh", "-c", "trap '' INT; echo up; sleep 1000") as process:
        assert process.stdout is not None
        process.stdout.readline()
        begun = time.monotonic()
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        process.communicate(timeout=30)
    assert process.returncode == 137
    assert time.monotonic() - begun < 10


def test_insisting_ends_castoff_too_where_nobody_reads_the_output(castoff: Castoff) -> None:
    """A pager that stands still, a terminal after Ctrl-S: the machine is killed, and castoff does not wait to write."""
    with castoff.start("yes") as process:
        assert process.stdout is not None
        process.stdout.read(10)
        time.sleep(0.5)  # the pipe is full
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert process.wait(10) == 137


def test_interrupted_before_the_command_runs(castoff: Castoff) -> None:
    """In the middle of a boot: nothing is left (the fixture looks), 130."""
    with castoff.start("true") as process:
        eventually("a machine", lambda: castoff.state.exists() and any(not p.name.startswith(".") for p in castoff.machines))
        time.sleep(0.4)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize(("words", "code"), [(["nosuch"], 127), (["/srv/data"], 126)])
def test_what_cannot_be_executed_is_told_as_shells_do(castoff: Castoff, words: list[str], code: int) -> None:
    """127: not there; 126: there, and no program. One line says why."""
    done = castoff.run(*words)
    assert (done.returncode, done.stdout) == (code, b"")
    assert re.fullmatch(rb"castoff: [^\n]*" + re.escape(words[0].encode()) + rb"[^\n]*\n", done.stderr), done.stderr


def test_published_ports_lead_into_the_machine(castoff: Castoff) -> None:
    """A server in the guest answers on the host's loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with castoff.start("httpd", "-f", "-p", "80", "-h", "/srv", flags=["-p", f"{port}:80"]) as process:

        def answers() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            try:
                connection.request("GET", "/data")
                return connection.getresponse().read() == b"from the image\n"
            except OSError:
                return False
            finally:
                connection.close()

        eventually("an answer of the guest's server", answers, timeout=40)
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 143
    with socket.create_server(("127.0.0.1", port)):
        taken = castoff.run("true", flags=["-p", f"{port}:80"])
    assert taken.returncode == 125 and b"in use" in taken.stderr
    low = castoff.run("true", flags=["-p", "81:80"])
    assert low.returncode == 125 and b"port 81 cannot be published" in low.stderr


def test_a_machine_without_network_has_no_card(castoff: Castoff) -> None:
    """Loopback only; publishing a port then is a slip that is told."""
    done = castoff.run("ls", "/sys/class/net", flags=["--network", "none"])
    assert (done.returncode, done.stdout) == (0, b"lo\n")
    refused = castoff.run("true", flags=["--network", "none", "-p", "8080:80"])
    assert refused.returncode == 125 and b"network" in refused.stderr


def test_every_kind_of_clone_boots_and_is_written_without_touching_the_rootfs(castoff: Castoff) -> None:
    """What one machine writes, deletes and replaces the next does not see."""
    look = "cat /srv/data; test ! -e /new; ls -d /home/app; "
    write = "echo changed > /srv/data; rm -r /home; touch /new; sync; cat /srv/data; test ! -e /home"
    for clone in ("reflink", "overlay", "copy"):
        done = castoff.run("sh", "-ec", look + write, flags=["--clone", clone])
        assert (done.returncode, done.stdout) == (0, b"from the image\n/home/app\nchanged\n"), (clone, done.stderr)
    assert castoff.run("sh", "-ec", look).stdout == b"from the image\n/home/app\n"


def test_a_rootfs_that_was_built_runs_when_it_is_named(castoff: Castoff, tmp_path: Path) -> None:
    """`castoff rootfs build -o FILE`, then `--rootfs FILE`: the image gives only its configuration."""
    file = tmp_path / "root.ext4"
    built = castoff("rootfs", "build", castoff.image, "--size", "1G", "-o", str(file), "--json")
    assert built.returncode == 0, built.stderr
    answer = json.loads(built.stdout)
    assert (answer["path"], answer["size"], file.stat().st_size) == (str(file), 1 << 30, 1 << 30)
    assert _fsck(file) == ""
    before = file.stat().st_mtime_ns
    done = castoff.run("sh", "-c", "echo x > /srv/data; cat /srv/data", flags=["--rootfs", str(file)])
    assert (done.returncode, done.stdout) == (0, b"x\n"), done.stderr
    assert file.stat().st_mtime_ns == before


def _fsck(file: Path) -> str:
    """What e2fsck has to say of a filesystem beside its passes; nothing, when it is sound."""
    done = subprocess.run(["e2fsck", "-fn", str(file)], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("Pass ") and " files (" not in line]
    return "\n".join(lines)


def test_the_timeline_is_written_with_parents_and_overlap(
    plain: tuple[subprocess.CompletedProcess[bytes], bytes, Path],
) -> None:
    """JSON for scripts: every step that ran, complete, inside its parent; steps that ran at once overlap."""
    done, _, file = plain
    assert (done.returncode, done.stderr) == (0, b"")
    steps = json.loads(file.read_text())["steps"]
    by_name = {step["name"]: step for step in steps}
    assert {"python", "cli", "vmm.kernel", "vmm.initramfs", "vmm.qemu", "machine.boot", "cli.attach"} <= set(by_name)
    assert all(step["state"] == "complete" for step in steps)
    for step in steps:
        if "parent" in step:
            parent = steps[step["parent"]]
            assert parent["started"] <= step["started"] <= step["ended"] <= parent["ended"] + 0.001
    assert by_name["machine.boot"]["attributes"]["kernel_ms"] > 100
    spans = [(step["started"], step["ended"]) for step in steps if "parent" not in step]
    assert any(a[0] < b[0] < a[1] for a in spans for b in spans)


def test_a_failed_run_has_a_timeline_too(castoff: Castoff, tmp_path: Path) -> None:
    """The step that failed says why."""
    done = castoff("run", "--timeline", str(tmp_path / "t.json"), "--rootfs", str(tmp_path / "missing.ext4"), castoff.image)
    assert done.returncode == 125
    steps = json.loads((tmp_path / "t.json").read_text())["steps"]
    assert any(step["state"] == "failed" and "missing.ext4" in step["error"] for step in steps)


def _vmm_of(castoff: Castoff) -> tuple[Path, int]:
    """The directory and the VMM's pid of the one machine that runs."""
    found: list[dict[str, object]] = []

    def started() -> bool:
        found[:] = [one for one in castoff.json("machine", "list") if one["state"] == "started"]
        return len(found) == 1

    eventually("a machine that is started", started)
    state = found[0]["vmm_state"]
    assert isinstance(state, dict)
    return castoff.state / "store" / "machines" / str(found[0]["id"]), int(state["pid"])


def test_a_killed_vmm_is_told_and_its_disk_recovers(castoff: Castoff) -> None:
    """125 and one line; the kept disk, killed in mid-write, replays its journal and is sound."""
    script = "mkdir /d; echo up; i=0; "
    script += "while :; do i=$((i+1)); echo $i > /d/$i; cp /bin/busybox /d/b$((i % 7)); rm -f /d/$((i - 20)); sync; done"
    with castoff.start("sh", "-c", script, flags=["--keep", "--name", "kept"]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        directory, pid = _vmm_of(castoff)
        time.sleep(1.5)
        os.kill(pid, signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 125
    assert err.splitlines()[-1].startswith(b"castoff: ") and b"Traceback" not in err
    disk = directory / "root.ext4"
    recovered = subprocess.run(["e2fsck", "-p", str(disk)], capture_output=True, text=True, check=False)
    assert recovered.returncode in (0, 1) and "recovering journal" in recovered.stdout, recovered.stdout
    assert _fsck(disk) == ""
    (listed,) = castoff.json("machine", "list")
    assert (listed["name"], listed["state"]) == ("kept", "exited")
    assert castoff("machine", "remove", "kept").returncode == 0


def test_a_kept_machine_leaves_a_clean_disk_and_its_exit_code(castoff: Castoff) -> None:
    """The guest unmounted it: no journal to replay. The name is taken until the machine is removed."""
    done = castoff.run("sh", "-c", "echo x > /srv/data; exit 3", flags=["--keep", "--name", "kept"])
    assert done.returncode == 3
    (listed,) = castoff.json("machine", "list")
    assert (listed["status"], listed["exit_code"]) == ("exited 3", 3)
    disk = castoff.state / "store" / "machines" / listed["id"] / "root.ext4"
    assert _fsck(disk) == ""
    again = castoff.run("true", flags=["--name", "kept"])
    assert again.returncode == 125 and b"kept" in again.stderr
    assert castoff("machine", "remove", listed["id"]).returncode == 0


def test_what_a_killed_castoff_left_is_ended_and_removed_by_the_next(castoff: Castoff) -> None:
    """Its VMM and its directory; its name is free again at once."""
    with castoff.start("sh", "-c", "echo up; sleep 1000", flags=["--name", "web"]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        directory, pid = _vmm_of(castoff)
        process.kill()
        process.communicate(timeout=30)
    assert is_running(pid) and directory.exists()
    done = castoff.run("true", flags=["--name", "web"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert not is_running(pid) and not directory.exists()


def test_castoff_killed_at_any_instant_leaves_nothing_that_the_next_does_not_remove(castoff: Castoff) -> None:
    """Before, while and after the VMM starts and is written down: no process, no directory, no debris stays."""
    for delay in (0.15, 0.2, 0.22, 0.24, 0.26, 0.28, 0.3, 0.35, 0.5, 0.8):
        process = castoff.start("sleep", "1000")
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=30)
    assert castoff.run("true").returncode == 0
    assert castoff.machines == []
    assert not list(_users(castoff.state))


def _users(directory: Path) -> Iterator[int]:
    """Processes that hold a file below a directory open."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if any(link.readlink().is_relative_to(directory) for link in (entry / "fd").iterdir()):
                yield int(entry.name)
        except OSError:  # it ended while we looked
            continue


def test_a_machine_that_cannot_boot_shows_its_console(castoff: Castoff) -> None:
    """Too little memory for the kernel: its last words, then one line, 125."""
    done = castoff.run("true", flags=["--memory", "64M"])
    assert done.returncode == 125
    *console, last = done.stderr.decode().splitlines()
    assert last.startswith("castoff: ")
    assert console and all(line.startswith("console: ") for line in console)
    silent = castoff.run("true", flags=["--memory", "32M"])
    assert silent.returncode == 125
    assert re.fullmatch(rb"castoff: [^\n]*--memory[^\n]*\n", silent.stderr), silent.stderr


def test_the_console_is_shown_when_asked_for(castoff: Castoff) -> None:
    """On stderr, beside the command's."""
    done = castoff.run("sh", "-c", "echo out; echo '<1>spoken by the kernel' > /dev/kmsg; sleep 0.5", flags=["--console"])
    assert (done.returncode, done.stdout) == (0, b"out\n")
    assert b"spoken by the kernel" in done.stderr


def test_running_out_of_memory_is_told(castoff: Castoff) -> None:
    """137 alone could be anything."""
    # One buffer that is smaller than all memory, which the kernel therefore grants, and larger than what is free of it.
    done = castoff.run("dd", "if=/dev/zero", "of=/dev/null", "bs=85M", "count=1", flags=["--memory", "128M"])
    assert done.returncode == 137, done.stderr
    assert b"memory" in done.stderr and b"--memory" in done.stderr


def test_a_reader_that_leaves_ends_the_machine(castoff: Castoff) -> None:
    """`castoff run ... | head -1` does not go on for ever: 141."""
    with castoff.start("yes") as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_two_at_once_convert_once_and_both_run(castoff: Castoff, tmp_path: Path) -> None:
    """On a host that has nothing of the image."""
    write_layout(tmp_path / "other", {"x": busybox_image(labels={"another": "image"})})
    command = castoff.command("run", f"oci:{tmp_path}/other:x", "echo", "hello")
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, b"hello\n"), err


def test_a_rootfs_of_containerd_runs_and_is_given_back(
    castoff: Castoff, tmp_path: Path, registry: daemons.Registry, containerd: daemons.Containerd
) -> None:
    """The old way is one provider: containerd pulls and unpacks, its snapshot boots, and nothing of it outlives the machine."""
    write_layout(tmp_path / "layout", {"v1": busybox_image()})
    push = [
        "skopeo",
        "copy",
        "-q",
        "--dest-tls-verify=false",
        f"oci:{tmp_path}/layout:v1",
        f"docker://{registry.host}/team/run:v1",
    ]
    subprocess.run(push, check=True)
    config = tmp_path / "config.toml"
    config.write_text(f'[rootfs.containerd]\nsocket = "{containerd.socket}"\nnamespace = "runs"\nsnapshotter = "native"\n')
    done = castoff("--config", str(config), "run", "--rootfs", "containerd", f"{registry.host}/team/run:v1", "cat", "/srv/data")
    assert (done.returncode, done.stdout) == (0, b"from the image\n"), done.stderr
    leases = ["ctr", "--address", str(containerd.socket), "--namespace", "runs", "leases", "list", "-q"]
    before = subprocess.run(leases, capture_output=True, check=True).stdout
    assert castoff.json("machine", "list") == []
    again = castoff("--config", str(config), "run", "--rootfs", "containerd", f"{registry.host}/team/run:v1", "id", "-u")
    assert (again.returncode, again.stdout) == (0, b"0\n"), again.stderr
    assert subprocess.run(leases, capture_output=True, check=True).stdout == before
