"""Reading an ext4 image: superblock, descriptors, blocks and inodes, each verified as it is read.

Nothing here shares code with composing but the structures' dtypes, so that a mistake there is not repeated here. A reader
collects problems and goes on where it can.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import crc32c
import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid, Unavailable
from castoff.ext4.structures import GROUP_DESCRIPTOR, SUPERBLOCK

__all__ = ["EA_INODE", "Image", "Inode", "Problem", "checksum"]

BLOCK = 4096
_MASK = 0xFFFFFFFF
EA_INODE = 0x400
_SUPPORTED_INCOMPAT = 0x2 | 0x4 | 0x40 | 0x80 | 0x200 | EA_INODE
_REQUIRED_INCOMPAT = 0x2 | 0x40 | 0x80
_METADATA_CSUM = 0x400


def checksum(seed: int, *parts: bytes | memoryview) -> int:
    """CRC-32C without the usual inversions."""
    value = seed ^ _MASK
    for part in parts:
        value = crc32c.crc32c(part, value)
    return value ^ _MASK


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong: where, and what."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode as it is on disk."""

    number: int
    raw: bytes
    seed: int
    """The checksum seed of its blocks."""
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    sectors: int
    """i_blocks, in 512 bytes."""
    flags: int
    attribute_block: int
    times: tuple[tuple[int, int], ...]
    """(seconds, nanoseconds) of atime, ctime, mtime, crtime."""

    @property
    def kind(self) -> int:
        """The file type's bits of the mode."""
        return self.mode & 0xF000

    @property
    def block(self) -> bytes:
        """i_block's 60 bytes."""
        return self.raw[40:100]


@dataclass(slots=True)
class Image:
    """An open image. ``with Image.open(path) as image`` closes it.

    Attributes:
        problems: What was found to be wrong so far.
    """

    data: mmap.mmap
    view: memoryview
    superblock: np.void
    blocks: int
    groups: int
    seed: int
    descriptors: NDArray[np.void]
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Image:
        """Maps an image file and reads its superblock and descriptors.

        Raises:
            Unavailable: It cannot be read.
            Invalid: It is no ext4 that this reader knows.
        """
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < 8 * BLOCK:
                    raise Invalid(f"{path} is too small to be an ext4 image")
                data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except OSError as error:
            raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
        view = memoryview(data)
        superblock = np.frombuffer(view[1024:2048], dtype=SUPERBLOCK)[0]
        blocks = int(superblock["s_blocks_count_lo"]) | int(superblock["s_blocks_count_hi"]) << 32
        incompat = int(superblock["s_feature_incompat"])
        known = superblock["s_magic"] == 0xEF53 and superblock["s_log_block_size"] == 2 and superblock["s_inode_size"] == 256
        known = known and superblock["s_blocks_per_group"] == 8 * BLOCK and superblock["s_inodes_per_group"] > 0
        known = known and incompat & ~_SUPPORTED_INCOMPAT == 0 and incompat & _REQUIRED_INCOMPAT == _REQUIRED_INCOMPAT
        known = known and int(superblock["s_feature_ro_compat"]) & _METADATA_CSUM != 0 and superblock["s_desc_size"] == 64
        if not known or not 0 < blocks * BLOCK <= size:
            view.release()
            raise Invalid(f"{path} is no ext4 image of the kind that castoff makes, or its superblock is damaged")
        groups = -(-blocks // (8 * BLOCK))
        table = view[BLOCK : BLOCK + groups * GROUP_DESCRIPTOR.itemsize]
        descriptors = np.frombuffer(table, dtype=GROUP_DESCRIPTOR)
        seed = checksum(_MASK, superblock["s_uuid"].tobytes())
        return cls(data, view, superblock, blocks, groups, seed, descriptors)

    def __enter__(self) -> Image:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # The arrays look into the mapping; it is unmapped when the last of them is gone.
        self.view = memoryview(b"")

    def report(self, where: str, what: str) -> None:
        """Notes a problem."""
        self.problems.append(Problem(where, what))

    def block(self, number: int) -> memoryview:
        """A block's bytes; zeros for one that is not there."""
        if not 0 <= number < self.blocks:
            return memoryview(bytes(BLOCK))
        return self.view[number * BLOCK : (number + 1) * BLOCK]

    def wide(self, group: int, name: str, half: int = 32) -> int:
        """A descriptor's field that is stored in two halves."""
        row = self.descriptors[group]
        return int(row[f"{name}_lo"]) | int(row[f"{name}_hi"]) << half

    @property
    def inodes_per_group(self) -> int:
        """Inodes of each group."""
        return int(self.superblock["s_inodes_per_group"])

    def inode_bytes(self, number: int) -> bytes:
        """The 256 bytes of an inode."""
        group, index = divmod(number - 1, self.inodes_per_group)
        at = self.wide(group, "bg_inode_table") * BLOCK + index * 256
        return bytes(self.view[at : at + 256]).ljust(256, b"\0")

    def inode(self, number: int) -> Inode:
        """Reads an inode; a wrong checksum is noted."""
        raw = self.inode_bytes(number)
        fields = struct.unpack("<HHIIIIIHHIII60sIIII HHHHHHHHIIIIIII", raw[:160])
        (mode, uid, size, atime, ctime, mtime, _, gid, links, sectors, flags, _, _, generation, acl, size_high, _) = fields[:17]
        (sectors_high, acl_high, uid_high, gid_high, crc, _, extra, crc_high) = fields[17:25]
        ctime_extra, mtime_extra, atime_extra, crtime, crtime_extra = fields[25:30]
        seed = checksum(self.seed, struct.pack("<II", number, generation))
        blank = raw[:124] + b"\0\0" + raw[126:130] + b"\0\0" + raw[132:]
        if checksum(seed, blank) != crc | crc_high << 16:
            self.report(f"inode {number}", "wrong checksum")
        if extra != 32:
            self.report(f"inode {number}", f"i_extra_isize is {extra}")
        pairs = ((atime, atime_extra), (ctime, ctime_extra), (mtime, mtime_extra), (crtime, crtime_extra))
        return Inode(
            number=number,
            raw=raw,
            seed=seed,
            mode=mode,
            uid=uid | uid_high << 16,
            gid=gid | gid_high << 16,
            size=size | size_high << 32,
            links=links,
            sectors=sectors | sectors_high << 32,
            flags=flags,
            attribute_block=acl | acl_high << 32,
            times=tuple(_time(seconds, more) for seconds, more in pairs),
        )


def _time(seconds: int, extra: int) -> tuple[int, int]:
    signed = seconds - (1 << 32) if seconds >> 31 else seconds
    return signed + ((extra & 3) << 32), extra >> 2
