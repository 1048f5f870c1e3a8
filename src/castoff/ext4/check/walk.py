"""All files of an image, with every attribute: for comparing it with another tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from castoff.ext4.check.attributes import Seen, read_attributes
from castoff.ext4.check.directories import read_directory
from castoff.ext4.check.extents import Mapping, map_blocks, read_contents
from castoff.ext4.check.image import Image, Inode

__all__ = ["File", "walk"]

_DIRECTORY, _REGULAR, _SYMLINK, _CHARACTER, _BLOCK = 0x4000, 0x8000, 0xA000, 0x2000, 0x6000


@dataclass(frozen=True, slots=True)
class File:
    """One path of an image."""

    path: bytes
    """Relative to the root, which is empty."""
    inode: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    mtime: tuple[int, int]
    """Seconds and nanoseconds."""
    target: bytes
    """Of a symlink."""
    device: tuple[int, int]
    """Major and minor number."""
    attributes: dict[bytes, bytes]
    contents: bytes
    """Of a regular file, or empty where they were not asked for."""


def walk(path: Path, *, contents: bool = False) -> Iterator[File]:
    """All paths of an image file, each directory before what is in it.

    Raises:
        Unavailable: It cannot be read.
        Invalid: It is no ext4 that castoff makes.
    """
    with Image.open(path) as image:
        todo = [(b"", 2)]
        while todo:
            name, number = todo.pop()
            inode = image.inode(number)
            mapping = map_blocks(image, inode) if inode.flags & 0x80000 else Mapping()
            yield _file(image, name, inode, mapping, contents)
            if inode.mode & 0xF000 == _DIRECTORY:
                prefix = name + b"/" if name else b""
                entries = read_directory(image, inode, mapping)[2:]
                todo += [(prefix + entry.name, entry.inode) for entry in reversed(entries)]


def _file(image: Image, path: bytes, inode: Inode, mapping: Mapping, contents: bool) -> File:
    kind = inode.mode & 0xF000
    target = data = b""
    if kind == _SYMLINK:
        target = b"".join(read_contents(image, inode, mapping)) if mapping.extents else inode.block[: inode.size]
    elif kind == _REGULAR and contents:
        data = b"".join(read_contents(image, inode, mapping))
    return File(
        path=path,
        inode=inode.number,
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        size=inode.size,
        links=inode.links,
        mtime=inode.times[2],
        target=target,
        device=_device(inode.block) if kind in (_CHARACTER, _BLOCK) else (0, 0),
        attributes=read_attributes(image, inode, Seen()),
        contents=data,
    )


def _device(block: bytes) -> tuple[int, int]:
    old, new = int.from_bytes(block[:4], "little"), int.from_bytes(block[4:8], "little")
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00
