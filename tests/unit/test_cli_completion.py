"""Completion, by the shells themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> str:
    """A PATH on which `castoff` is this checkout's."""
    program = tmp_path / "castoff"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m castoff "$@"\n')
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def _script(shell: str, path: str) -> str:
    done = subprocess.run(
        ["castoff", "completion", shell], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


def _bash(words: str, path: str) -> list[str]:
    """What bash offers after `castoff WORDS`, its last word being completed."""
    script = f"""
{_script("bash", path)}
line={words!r}
COMP_WORDS=($line)
[[ $line == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_castoff_completion castoff
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_and_values(path: str) -> None:
    """Real bash, running the script that castoff prints."""
    assert "rootfs" in _bash("castoff ro", path)
    assert _bash("castoff rootfs bu", path) == ["build"]
    assert "--timeline" in _bash("castoff run --ti", path)
    assert set(_bash("castoff run --clone ", path)) == {"reflink", "overlay", "copy"}
    assert "--state" in _bash("castoff store usage --st", path)


def test_bash_completes_what_is_here(path: str, tmp_path: Path) -> None:
    """Names of root filesystems and machines, of the state that the line names; nothing is made where there is none."""
    state = tmp_path / "state"
    assert _bash(f"castoff --state {state} rootfs show ", path) == []
    assert not state.exists()
    for name in ("rootfs/abc-1", "rootfs/def-2", "machines/00112233445566", "machines/.debris"):
        (state / "store" / name).mkdir(parents=True)
    assert _bash(f"castoff --state {state} rootfs show ", path) == ["abc-1", "def-2"]
    assert _bash(f"castoff --state {state} rootfs remove d", path) == ["def-2"]
    assert _bash(f"castoff --state {state} machine remove ", path) == ["00112233445566"]


def _fish(line: str, path: str, home: Path) -> list[str]:
    """What fish offers for a line."""
    code = f"{_script('fish', path)}\ncomplete -C '{line}'"
    environment = os.environ | {"PATH": path, "HOME": str(home)}
    done = subprocess.run(["fish", "--no-config", "-c", code], env=environment, capture_output=True, text=True, check=True)
    return [word.split("\t")[0] for word in done.stdout.splitlines()]


def test_fish_completes(path: str, tmp_path: Path) -> None:
    """Real fish, asked as its own line editor asks."""
    assert "rootfs" in _fish("castoff ro", path, tmp_path)
    assert _fish("castoff rootfs bu", path, tmp_path) == ["build"]
    assert set(_fish("castoff run --clone ", path, tmp_path)) == {"reflink", "overlay", "copy"}


def _zsh(words: list[str], path: str) -> list[str]:
    """What zsh would show: its builtins, which want a line editor, print what they are given."""
    code = f"""
compdef() {{ }}
_describe() {{ print -l -- "${{(@P)3}}" }}
compadd() {{ print -l -- "${{(@P)@[-1]}}" }}
{_script("zsh", path)}
words=({" ".join(map(repr, words))})
CURRENT={len(words)}
_castoff_completion
"""
    done = subprocess.run(["zsh", "-f"], input=code, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True)
    return [word.split(":")[0] for word in done.stdout.split("\n") if word]


def test_zsh_completes(path: str) -> None:
    """Real zsh, running the function that castoff prints."""
    assert "rootfs" in _zsh(["castoff", "ro"], path)
    assert _zsh(["castoff", "rootfs", "bu"], path) == ["build"]
    assert set(_zsh(["castoff", "run", "--clone", ""], path)) == {"reflink", "overlay", "copy"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_is_one_that_the_shell_reads(shell: str, path: str) -> None:
    """The shell's own syntax check, and the registration."""
    script = _script(shell, path)
    assert "_CASTOFF_COMPLETE" in script and "castoff" in script
    subprocess.run([shell, "-n"], input=script, text=True, check=True)
