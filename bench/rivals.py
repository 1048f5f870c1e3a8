"""The ways that people make a rootfs from an image today, each from the registry, each leaving nothing behind.

What castoff builds is on disk when its command returns, so the clock of the others stops when theirs is, too.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import measure
from bench.stage import SIZE, Published, Stage

__all__ = ["Taken", "containerd", "tar", "umoci"]


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of one run."""

    tree: float
    """From the reference to an unpacked tree (containerd: to the image's snapshot) that is on disk."""
    mke2fs: float
    """From the tree to an ext4 in a file, on disk."""

    @property
    def bootable(self) -> float:
        """From the reference to a file that boots."""
        return self.tree + self.mke2fs


def _timed(command: Sequence[str | Path]) -> float:
    return measure.run(command, watch=False).seconds


def _flush(place: Path) -> float:
    """Seconds until all that was written to the filesystem of ``place`` is on disk."""
    return _timed(["sync", "--file-system", place])


def _mke2fs(tree: Path, file: Path) -> float:
    return _timed(["mke2fs", "-q", "-t", "ext4", "-d", tree, file, f"{SIZE >> 10}k"]) + _flush(file)


def containerd(stage: Stage, image: Published) -> Taken:
    """containerd's pull and unpack (overlayfs), then ``mke2fs -d`` of the mounted view."""
    ctr = ["ctr", "--address", str(stage.containerd.socket), "--namespace", "bench"]
    pull = _timed([*ctr, "images", "pull", "--plain-http", "--snapshotter", "overlayfs", image.reference])
    flushed = _flush(stage.containerd.root)
    with stage.scratch("containerd-ext4") as scratch:
        view = scratch / "view"
        view.mkdir()
        measure.run([*ctr, "images", "mount", "--snapshotter", "overlayfs", image.reference, view])
        try:
            made = _mke2fs(view, scratch / "rootfs.ext4")
        finally:
            measure.run([*ctr, "images", "unmount", "--rm", view])
    measure.run(
        [*ctr, "images", "rm", "--sync", image.reference]
    )  # --sync: containerd's garbage collection runs before it returns
    left = subprocess.run([*ctr, "snapshots", "ls"], check=True, capture_output=True, text=True).stdout.splitlines()[1:]
    if left:
        raise measure.Failed(f"containerd kept {len(left)} snapshots: the next round would not be cold")
    return Taken(pull + flushed, made)


def _copy(image: Published, target: str) -> float:
    return _timed(["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{image.reference}", target])


def umoci(stage: Stage, image: Published) -> Taken:
    """skopeo's copy to a layout, umoci's unpack, then ``mke2fs -d``."""
    with stage.scratch("umoci") as scratch:
        copy = _copy(image, f"oci:{scratch}/layout:latest")
        unpack = _timed(["umoci", "unpack", "--image", f"{scratch}/layout:latest", scratch / "bundle"])
        seconds = copy + unpack + _flush(scratch)
        made = _mke2fs(scratch / "bundle/rootfs", scratch / "rootfs.ext4")
    return Taken(seconds, made)


def tar(stage: Stage, image: Published) -> Taken:
    """skopeo's copy, GNU tar layer by layer (pigz decompresses beside it), then ``mke2fs -d``."""
    with stage.scratch("tar") as scratch:
        copy = _copy(image, f"dir:{scratch}/blobs")
        manifest = json.loads((scratch / "blobs/manifest.json").read_text())
        tree = scratch / "tree"
        tree.mkdir()
        seconds = copy
        for layer in manifest["layers"]:
            blob = scratch / "blobs" / layer["digest"].removeprefix("sha256:")
            seconds += _timed(["tar", "--xattrs", "--numeric-owner", "-I", "unpigz", "-C", tree, "-xpf", blob])
        seconds += _flush(scratch)
        made = _mke2fs(tree, scratch / "rootfs.ext4")
    return Taken(seconds, made)
