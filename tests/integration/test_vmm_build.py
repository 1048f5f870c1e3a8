"""The guest init is part of every installation: wheels carry it, and a missing compiler is one plain message."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="checkout")
def _checkout(tmp_path: Path) -> Path:
    """What git would give somebody: no guest init in it."""
    copy = tmp_path / "castoff"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "guest", "native", "packaging", "src"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, copy / name, ignore=shutil.ignore_patterns("guest-init", "answer.so", "__pycache__", "*.egg-info")
            )
        elif source.exists():
            shutil.copyfile(source, copy / name)
    if not (copy / "README.md").exists():
        (copy / "README.md").write_text("castoff\n")
    return copy


def build(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """hatchling, as pip calls it, in the environment that the tests run in."""
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *arguments],
        cwd=checkout,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_wheel_carries_a_small_static_init_for_this_machine(checkout: Path) -> None:
    """Executable, static, under 200 kB; the wheel says which machine it is for."""
    done = build(checkout, "-t", "wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    with zipfile.ZipFile(wheel) as archive:
        init = archive.read("castoff/vmm/guest-init")
        answerer = archive.read("castoff/hydrate/answer.so")
    assert init.startswith(b"\x7fELF") and len(init) < 200_000
    kinds = [int.from_bytes(init[64 + 56 * index : 68 + 56 * index], "little") for index in range(init[56])]
    assert 1 in kinds and 3 not in kinds, "it asks for a dynamic loader"
    assert answerer.startswith(b"\x7fELF") and len(answerer) < 50_000


def test_a_source_archive_carries_the_sources(checkout: Path) -> None:
    """And from it alone a wheel can be made."""
    done = build(checkout, "-t", "sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames()}
    assert {"guest/init.c", "guest/init.h", "native/answer.c", "packaging/build_init.py"} <= names


def test_a_missing_compiler_is_named_with_its_packages(checkout: Path, tmp_path: Path) -> None:
    """One message, no traceback to read through."""
    done = build(checkout, "-t", "wheel", CASTOFF_INIT_CC="no-such-compiler")
    assert done.returncode != 0
    assert "apt-get install musl-tools gcc" in done.stderr and "no-such-compiler is not installed" in done.stderr
    assert "Traceback" not in done.stderr
    without = tmp_path / "without-assembler"
    without.mkdir()
    (without / "musl-gcc").write_text("#!/bin/sh\necho cannot execute as >&2; exit 1\n")
    (without / "musl-gcc").chmod(0o755)
    lacking = build(checkout, "-t", "wheel", PATH=str(without))
    assert lacking.returncode != 0 and "apt-get install musl-tools gcc" in lacking.stderr
    assert "its assembler (as) is not installed" in lacking.stderr and "Traceback" not in lacking.stderr
    (checkout / "guest/init.c").write_text("this is no C\n")
    broken = build(checkout, "-t", "wheel")
    assert broken.returncode != 0 and "does not compile" in broken.stderr and "Traceback" not in broken.stderr


def test_without_a_compiler_for_the_answerer_the_wheel_is_made_without_it(checkout: Path) -> None:
    """And says so; one that is there but does not compile it is an error."""
    done = build(checkout, "-t", "wheel", CASTOFF_CC="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "no-such-compiler is not installed" in done.stderr and "apt-get install gcc libc6-dev" in done.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "castoff/vmm/guest-init" in archive.namelist() and "castoff/hydrate/answer.so" not in archive.namelist()
    (checkout / "native/answer.c").write_text("this is no C\n")
    broken = build(checkout, "-t", "wheel")
    assert broken.returncode != 0 and "does not compile" in broken.stderr and "Traceback" not in broken.stderr
