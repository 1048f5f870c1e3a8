"""Compiles what castoff has in C: a hatchling build hook, and a program for whoever works on it (python packaging/build_init.py).

The guest init is one static program; it lands in src/castoff/vmm/guest-init. The answerer of fanotify events is a library of the
hydrator's; it lands in src/castoff/hydrate/answer.so. Wheels carry both, git neither. Nothing runs without the first; without the
second, lazy machines' reads cost more (docs/lazy.md), so a build that has no compiler for it says so and goes on.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path("src/castoff/vmm/guest-init")
FLAGS = (
    *("-std=c11", "-D_GNU_SOURCE", "-Os", "-static", "-s", "-Wall", "-Wextra", "-fstack-protector-strong"),
    *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-Wl,--build-id=none"),
)
ANSWERER = Path("src/castoff/hydrate/answer.so")
ANSWERER_FLAGS = (
    *("-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-shared", "-s", "-Wall", "-Wextra", "-fstack-protector-strong"),
    "-Wl,--build-id=none",
)
WITHOUT = """\
castoff is built without its compiled answerer, and reads of lazy machines will cost more: {why}.
On Debian: apt-get install gcc libc6-dev, then install castoff again. CASTOFF_CC names another compiler.
"""
MISSING = """\
castoff's guest init needs a C compiler with musl, and {missing} is not installed.
On Debian: apt-get install musl-tools gcc
Elsewhere: install musl's gcc wrapper, or set CASTOFF_INIT_CC to a compiler that links statically against musl."""


def build(root: Path) -> Path:
    """Compiles guest/*.c; the program. Exits with one plain message where that is not possible."""
    compiler = shlex.split(os.environ.get("CASTOFF_INIT_CC", "musl-gcc"))
    if shutil.which(compiler[0]) is None:
        raise SystemExit(MISSING.format(missing=compiler[0]))
    sources = sorted(str(path) for path in (root / "guest").glob("*.c"))
    target = root / TARGET
    fresh = _beside(target)
    try:
        done = subprocess.run([*compiler, *FLAGS, "-o", str(fresh), *sources], capture_output=True, text=True, check=False)
        if done.returncode and shutil.which("as") is None:
            # Debian 13's musl-tools brings a musl-gcc that finds neither compiler nor assembler before gcc is installed too
            raise SystemExit(MISSING.format(missing="its assembler (as)"))
        if done.returncode:
            raise SystemExit(f"castoff's guest init does not compile with {' '.join(compiler)}:\n{done.stderr}")
        sys.stderr.write(done.stderr)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    return target


def build_answerer(root: Path) -> Path | None:
    """Compiles native/answer.c for the libc of this Python; None, and a message, where no compiler or no headers are there."""
    compiler = shlex.split(os.environ.get("CASTOFF_CC", "gcc"))
    target = root / ANSWERER
    if shutil.which(compiler[0]) is None:
        return _without(target, f"{compiler[0]} is not installed")
    fresh = _beside(target)
    try:
        command = [*compiler, *ANSWERER_FLAGS, "-o", str(fresh), str(root / "native/answer.c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and ("No such file or directory" in done.stderr or shutil.which("as") is None):
            return _without(target, f"{compiler[0]} lacks headers or an assembler")
        if done.returncode:
            raise SystemExit(f"castoff's answerer does not compile with {' '.join(compiler)}:\n{done.stderr}")
        sys.stderr.write(done.stderr)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    return target


def _without(target: Path, why: str) -> None:
    sys.stderr.write(WITHOUT.format(why=why))
    target.unlink(missing_ok=True)  # one of an older source would not fit its caller


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}")


if __name__ == "__main__":
    print(build(ROOT))
    print(build_answerer(ROOT) or "no answerer")
else:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class CompiledHook(BuildHookInterface):  # type: ignore[type-arg]
        """Builds both into wheels, editable ones too, and marks them as made for this machine."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Called before the wheel is made."""
            if self.target_name != "wheel":
                return
            build(Path(self.root))
            build_data["artifacts"].append(f"/{TARGET}")
            if build_answerer(Path(self.root)) is not None:
                build_data["artifacts"].append(f"/{ANSWERER}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{platform.machine()}"
