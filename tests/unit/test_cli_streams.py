"""Standard streams that are closed, and names that no encoding knows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASTOFF = [sys.executable, "-m", "castoff"]

_LOOK = """
import os, sys
from castoff.cli.streams import prepare
prepare()
held = [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]
with open(sys.argv[1], "w") as file:
    print(*held, file.fileno(), os.get_inheritable(1), file=file)
print("into nothing")
"""


@pytest.mark.parametrize(("closed", "numbers"), [("<&- >&- 2>&-", (0, 1, 2)), (">&-", (1,)), ("<&- 2>&-", (0, 2))])
def test_closed_streams_are_nobodys_and_no_file_takes_their_place(tmp_path: Path, closed: str, numbers: tuple[int, ...]) -> None:
    """Else the guest's output would be written into whatever castoff opens next."""
    said = tmp_path / "said"
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", _LOOK, str(said)]
    done = subprocess.run(words, input=b"", capture_output=True, check=True)
    *held, opened, inheritable = said.read_text().split()
    assert [held[number] for number in numbers] == ["/dev/null"] * len(numbers)
    assert int(opened) > 2 and inheritable == "True"
    assert done.stdout == (b"" if 1 in numbers else b"into nothing\n")


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_command_without_streams_works(closed: str) -> None:
    """As one whose output nobody wants."""
    assert subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *CASTOFF, "version"], check=False).returncode == 0


@pytest.mark.parametrize(("locale", "cafe"), [("C.UTF-8", "é".encode()), ("POSIX", b"\\xe9")])
def test_names_of_any_bytes_are_written_as_they_are(tmp_path: Path, locale: str, cafe: bytes) -> None:
    """Bytes that are no character come out as they went in; what the encoding lacks is an escape, not a failure."""
    plain = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    name = os.fsencode(tmp_path) + b"/\xff.toml"
    Path(os.fsdecode(name)).touch()
    done = subprocess.run([*CASTOFF, "config", "check", name], env=os.environ | plain, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, name + b": good\n"), done.stderr
    code = "from castoff.cli.streams import prepare; prepare(); print('\\xe9')"
    said = subprocess.run([sys.executable, "-c", code], env=os.environ | plain, capture_output=True, check=True).stdout
    assert said == cafe + b"\n"
