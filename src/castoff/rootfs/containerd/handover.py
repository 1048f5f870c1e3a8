"""From a snapshot's mounts to what a VMM can take: a block device as it is, or an ext4 image made of anything else.

``devmapper`` and ``blockfile`` answer one mount whose source is a block device, or a file to be loop-mounted: that is the
drive. Other snapshotters answer directories (overlay, bind), of which mke2fs makes an image.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from castoff import timeline
from castoff.errors import CastoffError, Invalid, NoSpace, Unavailable, Unsupported
from castoff.rootfs.containerd import export
from castoff.rootfs.containerd import messages as m

__all__ = ["BlockDevice", "block_device", "make_image"]


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """What one snapshot is on."""

    path: Path
    size: int


def block_device(mounts: Sequence[m.Mount], snapshotter: str) -> BlockDevice | None:
    """The device or file that the mounts consist of; None where they are directories.

    Raises:
        Unsupported: It holds another filesystem than ext4.
        Unavailable: It is not there.
    """
    if len(mounts) != 1 or mounts[0].type in ("overlay", "bind", "rbind", ""):
        return None
    path = Path(mounts[0].source)
    if mounts[0].type not in ("ext4", "ext3", "ext2"):
        raise Unsupported(
            f"snapshots of containerd's {snapshotter} are {mounts[0].type}, and castoff's machines boot ext4",
            hint='set fs_type = "ext4" for the snapshotter in containerd\'s configuration',
        )
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"containerd's snapshot {path}: {error.strerror}") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
            return None
        return BlockDevice(path, os.lseek(descriptor, 0, os.SEEK_END))
    finally:
        os.close(descriptor)


async def make_image(mounts: Sequence[m.Mount], path: Path, size: int, *, timeout: float) -> None:
    """Makes an ext4 image of what the mounts show.

    Args:
        mounts: Directories, as containerd gives them.
        path: The new image.
        size: Its bytes.
        timeout: Seconds it may take.

    Raises:
        Unsupported: This host or user cannot mount, or has no mke2fs.
        Invalid: ``size`` is too small.
        NoSpace: The disk is full.
    """
    with timeline.step("rootfs.containerd.handover", size=size), _mount_point(path) as directory:
        command = [
            "mke2fs",
            "-q",
            "-F",
            *("-t", "ext4", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0,nodiscard"),
            *("-d", str(directory)),
            str(path),
            f"{size // 1024}k",
        ]
        described = [{"type": one.type, "source": one.source, "options": list(one.options)} for one in mounts]
        job = json.dumps({"mounts": described, "directory": str(directory), "command": command})
        await _export(job.encode(), path, size, timeout)


@contextlib.contextmanager
def _mount_point(path: Path) -> Iterator[Path]:
    directory = path.with_name(f"{path.name}.mount")
    directory.mkdir()
    try:
        yield directory
    finally:
        directory.rmdir()


async def _export(job: bytes, path: Path, size: int, timeout: float) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        export.__file__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout):
            _, stderr = await process.communicate(job)
    except TimeoutError as error:
        raise Unavailable(f"making {path} took more than {timeout:.0f} s", hint="raise rootfs.containerd.timeout") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise _failure(stderr.decode(errors="replace"), path, size)


def _failure(said: str, path: Path, size: int) -> CastoffError:
    lines = [line for line in said.splitlines() if line.strip()] or ["mke2fs said nothing"]
    if "No space left on device" in said:
        return NoSpace(str(path), needed=size, available=0)
    if "Could not allocate" in said or "too small" in said or "not enough" in said:
        return Invalid(f"the image does not fit into {size} bytes", hint="ask for more with --disk-size")
    return Unsupported(f"no ext4 could be made of containerd's snapshot: {lines[-1][:200]}", hint="see `castoff doctor`")
