"""A composed image, mounted by the kernel, is what umoci and GNU tar unpack of the same layers, in every attribute."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from castoff.ext4.check.filesystem import check
from ext4_images import compose_file, convert_tar, fsck
from ext4_trees import differences, list_tree, mounted
from oci_builder import LayerTar, build_image, write_layout

ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, identity)
    for tag, permissions, identity in (
        (1, 7, 2**32 - 1),
        (2, 5, 1000),
        (4, 5, 2**32 - 1),
        (8, 4, 70000),
        (16, 5, 2**32 - 1),
        (32, 4, 2**32 - 1),
    )
)
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def base() -> LayerTar:
    tar = LayerTar().directory("./", mode=0o751, mtime=1500000000.25, uid=7)
    for name in (
        "etc",
        "usr",
        "usr/bin",
        "usr/lib",
        "var",
        "var/log",
        "tmp",
        "opt",
        "keep",
        "hide",
        "deep",
        "deep/a",
        "deep/a/b",
    ):
        tar.directory(name, mtime=1600000000.5)
    tar.symlink("bin", "usr/bin").symlink("lib", "/usr/lib").symlink("absolute", "/opt").symlink("up", "../../etc")
    tar.file("usr/bin/sh", b"#!shell\n", mode=0o755).file("usr/lib/libc.so", b"c" * 70000, mode=0o644)
    tar.file("etc/passwd", b"root\n", mtime=-1.5).file("etc/shadow", b"x", mode=0o600, uid=70000, gid=3000000000)
    tar.hardlink("etc/passwd-", "etc/passwd").hardlink("usr/bin/bash", "usr/bin/sh")
    for number in range(5):
        tar.file(f"hide/{number}", b"%d" % number).file(f"keep/{number}", b"%d" % number)
    tar.file("deep/a/b/file", b"deep").directory("hide/below").file("hide/below/x", b"x")
    tar.character("dev-null", 1, 3, mode=0o666).block("dev-loop", 259, 70000).fifo("pipe", mode=0o640)
    tar.file("setuid", b"s", mode=0o4755).file("sticky", b"s", mode=0o1644)
    tar.file("capable", b"c", mode=0o755, xattrs={"security.capability": CAPABILITY})
    tar.file("attributes", b"a", xattrs={"user.small": b"1", "user.large": b"L" * 2000, "trusted.t": b"\0\xff"})
    tar.file("many", b"a", xattrs={f"user.name{number:02}": b"v" * 80 for number in range(20)})
    tar.directory("acl", mode=0o754, xattrs={"system.posix_acl_access": ACL, "system.posix_acl_default": ACL})
    tar.file("big", b"0123456789abcdef" * 100000).file("empty", b"")
    tar.symlink("long-link", "x/" * 100).symlink("link59", "y" * 59).symlink("link60", "z" * 60)
    tar.file("n" * 255, b"long name").file("late", b"", mtime=4294967296.0 * 2 + 0.75)
    return tar


def second() -> LayerTar:
    tar = LayerTar().whiteout("hide/3").whiteout("missing").directory("keep", mode=0o711, mtime=1650000000.0)
    tar.file("keep/new", b"new").opaque("keep").file("keep/2", b"two again")
    tar.file("etc/passwd", b"root replaced\n")  # its hardlink keeps the old one
    tar.hardlink("etc/motd", "etc/shadow").hardlink("copy", "usr/lib/libc.so")
    tar.file("bin/tool", b"through a symlink", mode=0o755).file("lib/libm.so", b"m").file("absolute/app", b"a").file(
        "up/host", b"h"
    )
    tar.directory("setuid").file("setuid/inside", b"i")  # a directory over a file
    tar.file("opt/x", b"1").whiteout("deep/a").directory("deep", mtime=1.0)
    return tar


def third() -> LayerTar:
    tar = LayerTar().file("usr/lib", b"a file over a directory")  # lib now leads to a file
    tar.hardlink("kept", "etc/passwd-").file("twice", b"one").file("twice", b"two").hardlink("twice2", "twice")
    tar.directory("acl", mode=0o700).whiteout("var").directory("var", mode=0o700).file("var/x", b"x")
    tar.symlink("link59", "now short").fifo("empty").character("sticky", 8, 300)
    return tar


STACKS: dict[str, list[LayerTar]] = {
    "one layer": [base()],
    "replaced, hidden, through symlinks": [base(), second()],
    "three layers": [base(), second(), third()],
    "parents without entries": [
        LayerTar().file("a/b/c/d", b"x").file("a/e", b"y"),
        LayerTar().file("a/b/f", b"z").whiteout("a/e"),
    ],
    "a symlink to nowhere is made a directory": [
        LayerTar().symlink("s", "not/there"),
        LayerTar().file("s/f", b"x").directory("s/d", mode=0o700),
    ],
    "symlinks within one layer": [
        LayerTar().directory("d").symlink("l", "d").file("l/f", b"1").directory("l").file("l/g", b"2").symlink("d/back", "..")
    ],
    "a whiteout after what it spares": [
        LayerTar().directory("d").file("d/old", b"o").directory("d/sub").file("d/sub/old", b"o"),
        LayerTar().file("d/sub/new", b"n").whiteout("d").file("d/later", b"l"),
    ],
    "an opaque root": [base(), LayerTar().opaque("").file("only", b"this")],
    "hardlinks to all kinds": [
        LayerTar().symlink("s", "x").character("c", 1, 3).fifo("p").hardlink("s2", "s").hardlink("c2", "c").hardlink("p2", "p")
    ],
    "two hard chains": [
        LayerTar().file("a", b"1").hardlink("b", "a").hardlink("c", "b"),
        LayerTar().file("b", b"2").hardlink("d", "c"),
    ],
}  # fmt: skip


def implied(path: Path) -> frozenset[bytes]:
    """Directories of a composed tree that no entry describes: root's, 0755, of 1970."""
    entries = list_tree(path).items()
    return frozenset(name for name, entry in entries if (entry.mode, entry.uid, entry.mtime) == (0o40755, 0, 0))


@pytest.fixture
def scratch(daemon_directory: Path) -> Path:
    directory = daemon_directory / "unpackers"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def composed(tars: Sequence[bytes], scratch: Path) -> Path:
    layers = [convert_tar(tar, scratch / f"layer{number}") for number, tar in enumerate(tars)]
    path = scratch / "rootfs"
    compose_file(path, layers)
    assert fsck(path) == ""
    assert check(path) == []
    return path


@pytest.mark.parametrize("name", STACKS)
def test_a_composed_image_is_what_umoci_unpacks(name: str, scratch: Path) -> None:
    """Every path, mode, owner, time, device, link, attribute and byte."""
    tars = [layer.bytes() for layer in STACKS[name]]
    write_layout(scratch / "layout", {"latest": build_image(tars, compression="none")})
    command = ["umoci", "unpack", "--image", f"{scratch / 'layout'}:latest", str(scratch / "bundle")]
    subprocess.run(command, check=True, capture_output=True)
    with mounted(composed(tars, scratch)) as mount:
        found = differences(list_tree(mount), list_tree(scratch / "bundle" / "rootfs"), implied=implied(mount) | {b""})
    assert found == []


TARRED = ["one layer", "parents without entries", "hardlinks to all kinds", "symlinks within one layer"]


@pytest.mark.parametrize("name", TARRED)
def test_a_composed_layer_is_what_gnu_tar_extracts(name: str, scratch: Path) -> None:
    """The same against GNU tar, which knows no whiteouts."""
    tar = STACKS[name][0].bytes()
    (scratch / "layer.tar").write_bytes(tar)
    tree = scratch / "tree"
    tree.mkdir()
    command = [
        "tar",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--delay-directory-restore",
        "-xpf",
        str(scratch / "layer.tar"),
    ]
    subprocess.run([*command, "-C", str(tree)], check=True)
    with mounted(composed([tar], scratch)) as mount:
        assert differences(list_tree(mount), list_tree(tree), implied=implied(mount)) == []
