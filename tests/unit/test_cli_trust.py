"""`castoff trust` and `castoff key`, as processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import MINE

CASTOFF = [sys.executable, "-m", "castoff"]


def castoff(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One run, on a state of its own."""
    return subprocess.run([*CASTOFF, "--state", str(state), *words], capture_output=True, text=True, timeout=60, check=False)


def test_one_host_trusts_another(tmp_path: Path) -> None:
    """What `key show` prints there, `trust add` takes here; the fingerprint is what people compare."""
    here, there = tmp_path / "here", tmp_path / "there"
    shown = castoff(there, "key", "show")
    key = shown.stdout.strip()
    fingerprint = shown.stderr.split()[-1]
    assert shown.returncode == 0 and key.startswith("castoff-ed25519:") and len(fingerprint) == 16
    assert castoff(there, "key", "show", "-q").stderr == ""
    assert json.loads(castoff(there, "key", "show", "--json").stdout) == {
        "key": key,
        "fingerprint": fingerprint,
        "file": str(there / "keys" / "host.key"),
    }
    added = castoff(here, "trust", "add", key, "--name", "builder")
    assert (added.returncode, added.stdout, added.stderr) == (0, f"{fingerprint} builder\n", "")
    listed = castoff(here, "trust", "list")
    assert listed.stdout == f"FINGERPRINT       NAME     KEY\n{fingerprint}  builder  {key}\n"
    assert json.loads(castoff(here, "trust", "list", "--json").stdout) == {
        "keys": [{"key": key, "fingerprint": fingerprint, "name": "builder", "own": False}],
        "problems": [],
    }
    removed = castoff(here, "trust", "remove", "builder")
    assert (removed.returncode, removed.stdout) == (0, f"{fingerprint} builder\n")
    assert castoff(here, "trust", "list").stdout == "FINGERPRINT  NAME  KEY\n"


def test_a_file_with_a_key_is_as_good(tmp_path: Path) -> None:
    """Its name is taken from it, unless another is given."""
    file = tmp_path / "fleet.pub"
    file.write_text(f"# the builders\n{MINE.public} fleet\n")
    assert castoff(tmp_path / "a", "trust", "add", str(file)).stdout.split()[1:] == ["fleet"]
    assert castoff(tmp_path / "b", "trust", "add", str(file), "--name", "own").stdout.split()[1:] == ["own"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["trust", "add", "castoff-ed25519:AAAA"], 4),
        (["trust", "add", "/nowhere"], 3),
        (["trust", "add", str(MINE.public), "--name", "a b"], 4),
        (["trust", "add"], 2),
        (["trust", "remove", "nobody"], 3),
    ],
)
def test_failures_are_one_line_and_a_code(tmp_path: Path, words: list[str], code: int) -> None:
    """As of every command."""
    done = castoff(tmp_path / "state", *words)
    assert done.returncode == code and done.stdout == ""
    assert done.stderr.startswith("castoff: ") and done.stderr.count("\n") == 1


def test_keys_that_cannot_be_kept_are_told(tmp_path: Path) -> None:
    """A state directory that is a file is no place for them."""
    (tmp_path / "state").write_text("")
    for words in (["key", "show"], ["trust", "add", str(MINE.public)]):
        done = castoff(tmp_path / "state", *words)
        assert done.returncode in (5, 6) and done.stderr.count("\n") == 1 and "unexpected" not in done.stderr


def test_a_file_that_counts_for_nothing_is_told(tmp_path: Path) -> None:
    """`trust list` shows the others, and says which does not count and why."""
    state = tmp_path / "state"
    castoff(state, "trust", "add", str(MINE.public))
    (state / "keys" / "trusted" / "bad.pub").write_text("rubbish\x1b[31m\n")
    listed = castoff(state, "trust", "list")
    assert listed.returncode == 0 and MINE.public.fingerprint in listed.stdout
    assert listed.stderr.startswith("castoff: ") and "bad.pub" in listed.stderr and "\x1b" not in listed.stderr


def test_a_warm_run_has_no_use_for_the_library() -> None:
    """Configuration, host, create and provider are imported, and cryptography is not."""
    modules = "castoff.cli.run, castoff.config, castoff.host, castoff.create, castoff.rootfs.layered, castoff.machine.machine"
    code = f"import sys, {modules}\nassert not [name for name in sys.modules if name.partition('.')[0] == 'cryptography']"
    subprocess.run([sys.executable, "-c", code], check=True)
