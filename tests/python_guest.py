"""A root filesystem with this Python and this castoff in it, for what only a guest's kernel can show."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import msgspec

import castoff
from guests import MIB
from machines import busybox_layer

_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "ensurepip",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "config-*",
    "_bin",
)


def make_python_rootfs(path: Path, *scripts: Path) -> Path:
    """An ext4 image: busybox, ``/python`` and ``scripts`` in its root."""
    tree = path.with_suffix(".tree")
    tree.mkdir()
    subprocess.run(["tar", "-x", "-p", "-C", str(tree)], input=busybox_layer(), check=True, capture_output=True)
    for name in ("proc", "sys", "dev", "etc", "tmp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    binary = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    (tree / "python").symlink_to(binary)
    _copy(binary, tree)
    standard = Path(sysconfig.get_paths()["stdlib"])
    shutil.copytree(standard, tree / standard.relative_to("/"), ignore=_LEFT_OUT, dirs_exist_ok=True)
    for library in (binary, *standard.rglob("*.so"), *Path(msgspec.__file__).parent.glob("*.so")):
        _needed(library, tree)
    for package in (castoff, msgspec):
        directory = Path(package.__file__ or "").parent
        shutil.copytree(directory, tree / "packages" / directory.name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in scripts:
        shutil.copy(script, tree)
    with path.open("wb") as file:
        file.truncate(512 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(path)], check=True, capture_output=True)
    shutil.rmtree(tree)
    return path


def _needed(program: Path, tree: Path) -> None:
    """The libraries of a program."""
    told = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"(/\S+) \(0x", told):
        _copy(Path(library), tree)


def _copy(file: Path, tree: Path) -> None:
    place = tree / file.relative_to("/")
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.resolve(), place)
