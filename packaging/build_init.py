"""Compiles the guest init: a hatchling build hook, and a program for whoever works on it (python packaging/build_init.py).

The guest init is one static C program; it lands in src/castoff/vmm/guest-init, which wheels carry and git does not.
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
    fresh = target.with_name(f".guest-init.{os.getpid()}")
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


if __name__ == "__main__":
    print(build(ROOT))
else:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class GuestInitHook(BuildHookInterface):  # type: ignore[type-arg]
        """Builds the guest init into wheels, editable ones too, and marks them as made for this machine."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Called before the wheel is made."""
            if self.target_name != "wheel":
                return
            build(Path(self.root))
            build_data["artifacts"].append(f"/{TARGET}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{platform.machine()}"
