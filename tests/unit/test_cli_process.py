"""The command as a process: exit codes, one-line errors, signals, pipes, start-up."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import castoff
from castoff.cli.app import COMMANDS

CASTOFF = [sys.executable, "-m", "castoff"]


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """One run of castoff, its output as text."""
    return subprocess.run([*CASTOFF, *words], capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def assert_one_line(process: subprocess.CompletedProcess[str]) -> None:
    """The whole of stderr is `castoff: ...` on one line."""
    assert re.fullmatch(r"castoff: [^\n]+\n", process.stderr), process.stderr
    assert process.stdout == ""


def test_help_names_every_command_and_every_command_has_help() -> None:
    """The line in the root's help is the command's own first line."""
    text = " ".join(run("--help").stdout.split())
    for name, line in COMMANDS.items():
        assert f"{name} {line}" in text
        own = run(name, "--help")
        assert own.returncode == 0
        assert line in " ".join(own.stdout.split())
        assert "--state" in own.stdout


def test_help_imports_nothing_heavy() -> None:
    """What makes start-up slow is not there."""
    heavy = "numpy|aiohttp|rich|zstandard|grpc|asyncio|msgspec|tomllib"
    code = "import sys\nfrom castoff.cli import main\nmain(['--help'])\nprint(' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not re.search(rf"(^| )({heavy})( |$)", done.stderr)


def test_a_warm_run_imports_nothing_heavy() -> None:
    """All that one needs whose rootfs and kernel are here."""
    modules = "cli.run, castoff.host, castoff.create, castoff.rootfs.layered, castoff.machine.machine, castoff.vmm.qemu"
    code = f"import sys, castoff.{modules}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "aiohttp", "zstandard", "nats", "castoff.vmm.guest_processes"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["--nonsense"],
        ["completion", "csh"],
        ["timeline"],
        ["image", "inspect"],
        ["--color", "maybe", "version"],
    ],
)
def test_slips_of_usage_are_one_line_and_exit_2(words: list[str]) -> None:
    """They name the help that tells how."""
    done = run(*words)
    assert done.returncode == 2
    assert_one_line(done)
    assert "--help` tells" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "--nonsense"],
        ["run", "--memory", "lots", "alpine"],
        ["run", "-p", "80", "alpine"],
        ["run", "-e", "=", "x"],
    ],
)
def test_run_says_125_for_everything_of_its_own(words: list[str]) -> None:
    """So that a script can tell castoff's failures from the command's."""
    done = run(*words)
    assert done.returncode == 125
    assert_one_line(done)


def test_global_options_stand_before_and_behind_the_command(tmp_path: Path) -> None:
    """The one behind wins; the environment is below both."""

    def state(*words: str, **env: str) -> str:
        done = run(*words, env=os.environ | {"XDG_CONFIG_HOME": str(tmp_path)} | env)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["state"])

    assert state("config", "show", "--json", CASTOFF_STATE="/e") == "/e"
    assert state("--state", "/a", "config", "show", "--json", CASTOFF_STATE="/e") == "/a"
    assert state("--state", "/a", "config", "show", "--json", "--state", "/b") == "/b"
    assert state("--json", "--state", "/a", "config", "--state", "/c", "show") == "/c"


def test_version_is_the_packages() -> None:
    """For people and for scripts."""
    assert run("version").stdout.splitlines()[0] == f"castoff {castoff.__version__}"
    assert json.loads(run("version", "--json").stdout)["castoff"] == castoff.__version__


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    """As any Unix filter: no message, 128 + SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*CASTOFF, "--help"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_under_stdout_is_said() -> None:
    """An answer that could not be written is no success."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*CASTOFF, "version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 70
    assert "No space left on device" in done.stderr and done.stderr.count("\n") == 1


_SLOW = """
import asyncio, sys
from castoff.cli.loop import complete
async def work():
    print("ready", flush=True)
    try:
        await asyncio.sleep(30)
    finally:
        print("undone", flush=True)
        await asyncio.sleep(float(sys.argv[1]))
        print("wholly", flush=True)
try:
    complete(work())
except BaseException as error:
    sys.exit(getattr(error, "exit_code", 99))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_undoes_what_was_begun(number: signal.Signals) -> None:
    """The work is cancelled, its clean-up runs to its end, and the code says which signal it was."""
    with subprocess.Popen([sys.executable, "-c", _SLOW, "0.1"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        rest, _ = process.communicate(timeout=10)
    assert rest == "undone\nwholly\n"
    assert process.returncode == 128 + number


def test_the_third_signal_leaves_at_once() -> None:
    """A clean-up that hangs does not hold the person."""
    with subprocess.Popen([sys.executable, "-c", _SLOW, "60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begun = time.monotonic()
        while process.poll() is None and time.monotonic() - begun < 10:
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        process.wait(5)
    assert process.returncode == 130
    assert time.monotonic() - begun < 5


def test_unexpected_failures_are_one_line_and_a_traceback_on_request(tmp_path: Path) -> None:
    """castoff's own faults say how to report them."""
    code = """
import sys
from castoff.cli import app
app.cli.params  # the real root
import castoff.cli.version as broken
def fail(*a, **k): raise RuntimeError("a\\nb")
broken.command.callback = fail
sys.exit(app.execute(sys.argv[1:], entered=0.0))
"""

    def fails(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)

    plain, debug = fails("version"), fails("version", "--debug")
    assert plain.returncode == debug.returncode == 70
    assert_one_line(plain)
    assert "RuntimeError: a\\nb" in plain.stderr and "--debug" in plain.stderr
    assert "Traceback" in debug.stderr and debug.stderr.splitlines()[-1].startswith("castoff: ")


def test_stored_timelines_are_drawn_alone_and_side_by_side(tmp_path: Path) -> None:
    """With titles, and as JSON."""
    rows = [{"id": 0, "name": "rootfs.layered", "state": "complete", "started": 0, "ended": 2}]
    for name in ("cold", "warm"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"version": 1, "steps": rows}))
    alone = run("timeline", str(tmp_path / "cold.json"))
    assert alone.stdout.splitlines()[0].split() == ["cold", "2.00", "s"]
    both = run("timeline", f"first={tmp_path}/cold.json", f"{tmp_path}/warm.json")
    assert both.stdout.splitlines()[0].split() == ["first", "warm"]
    assert len(json.loads(run("timeline", "--json", f"{tmp_path}/cold.json", f"{tmp_path}/warm.json").stdout)) == 2


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"version":2,"steps":[]}', b'{"version":1,"steps":[{}]}', b"[" * 100_000, b"\xff"]
)
def test_what_is_no_timeline_is_refused(tmp_path: Path, content: bytes) -> None:
    """One line, exit 4."""
    (tmp_path / "x").write_bytes(content)
    done = run("timeline", str(tmp_path / "x"))
    assert done.returncode == 4
    assert_one_line(done)
    assert run("timeline", str(tmp_path / "missing")).returncode == 3


@pytest.mark.parametrize("parents", [[None, 1], [None, 0, 0, 7], [1, None], list(range(-1, 99)), "twice"])
def test_timelines_that_could_not_be_drawn_are_refused(tmp_path: Path, parents: list[int | None] | str) -> None:
    """Steps in circles, inside later ones, or a hundred deep: drawing them would never end, or take all memory."""
    rows = [
        {"id": number, "name": "x", "state": "complete", "started": 0, "ended": 1, "parent": None if parent == -1 else parent}
        for number, parent in enumerate([None] if isinstance(parents, str) else parents)
    ]
    if parents == "twice":
        rows.append(rows[0] | {"parent": 0})
    (tmp_path / "x").write_text(json.dumps({"version": 1, "steps": rows}))
    done = run("timeline", str(tmp_path / "x"))
    assert done.returncode == 4
    assert_one_line(done)


def test_a_timeline_that_cannot_be_written_is_told_before_anything_is_done(tmp_path: Path) -> None:
    """Not after the command ran, whose exit code would be lost."""
    done = run("--state", str(tmp_path / "state"), "run", "--timeline", str(tmp_path / "missing" / "t.json"), "alpine")
    assert done.returncode == 125
    assert_one_line(done)
    assert "missing" in done.stderr and not (tmp_path / "state").exists()


def test_an_empty_state_is_not_the_current_directory(tmp_path: Path) -> None:
    """`--state "$UNSET"` makes no store just here."""
    done = run("--state", "", "store", "usage", cwd=tmp_path)
    assert done.returncode == 2
    assert_one_line(done)
    assert list(tmp_path.iterdir()) == []


def test_a_slip_with_escapes_in_it_steers_no_terminal() -> None:
    """Scripts pass on what others gave them."""
    done = run("run", "--memory", "\x1b[31m", "alpine")
    assert_one_line(done)
    assert "\x1b" not in done.stderr
    assert "\x1b" not in run("--\x1b[31m").stderr
