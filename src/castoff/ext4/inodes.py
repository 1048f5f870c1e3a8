"""Inodes: what the layer alone says of them, and the words that only a composition knows.

A layer's tables hold the columns from which ``base_inodes`` makes an inode in which links, directory sizes, block numbers and
the like are zero, with the raw CRC of those 256 bytes. A composition fills the zeros with *patches*, and adds what each
contributes to the CRC, so no inode is ever read again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.ext4.attributes import AttributeSets
from castoff.ext4.checksum import contribution, row_crcs
from castoff.ext4.extents import EXTENT_MAGIC, EXTENTS_IN_INODE, ExtentList
from castoff.ext4.strings import Strings, spread
from castoff.ext4.structures import INODE, InodeFlag, Mode

__all__ = ["EXTRA_ISIZE", "FAST_SYMLINK", "WORD", "InodeColumns", "Patch", "base_crcs", "base_inodes", "seal", "word_of"]

EXTRA_ISIZE = 32
FAST_SYMLINK = 60
"""A symlink whose target is shorter stands in i_block."""
_WORDS = INODE.itemsize // 4
_FOLLOWING = INODE.itemsize - 4


def word_of(field: str) -> int:
    """The number of the 32-bit word in which ``field`` of an inode lies."""
    fields = INODE.fields
    assert fields is not None
    return int(fields[field][1]) // 4


class WORD:
    """Words of an inode that a composition fills."""

    LINKS = word_of("i_links_count")
    """Its upper half; the lower is i_gid."""
    SIZE = word_of("i_size_lo")
    BLOCKS = word_of("i_blocks_lo")
    BLOCKS_HIGH = word_of("i_blocks_high")
    FLAGS = word_of("i_flags")
    BLOCK = word_of("i_block")
    ATTRIBUTE_BLOCK = word_of("i_file_acl_lo")


@dataclass(frozen=True, slots=True, eq=False)
class InodeColumns:
    """The columns of a layer's tables that make inodes; one row an item."""

    mode: NDArray[np.uint16]
    """i_mode, with the type."""
    uid: NDArray[np.uint32]
    gid: NDArray[np.uint32]
    time: NDArray[np.uint32]
    """Of all four times, the seconds' lower 32 bits; the rest is in ``time_extra``, as on disk."""
    time_extra: NDArray[np.uint32]
    size: NDArray[np.uint64]
    inline: Strings
    """What stands in i_block: device numbers or a symlink's target (a longer one in a block of its own)."""
    extents: ExtentList
    attribute_set: NDArray[np.uint32]
    attributes: AttributeSets


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Values to be added to word ``word`` of the inodes ``rows``."""

    word: int
    rows: NDArray[np.int64] | slice
    values: NDArray[np.uint32]


def base_inodes(columns: InodeColumns, items: NDArray[np.int64], inodes: NDArray[np.void]) -> None:
    """Makes ``inodes``, zeros till now, the inodes of ``items`` as far as their layer knows them."""
    mode = columns.mode[items]
    uid, gid, size = columns.uid[items], columns.gid[items], columns.size[items]
    inodes["i_mode"] = mode
    inodes["i_uid"] = uid
    inodes["i_uid_high"] = uid >> 16
    inodes["i_gid"] = gid
    inodes["i_gid_high"] = gid >> 16
    inodes["i_size_lo"] = size
    inodes["i_size_high"] = size >> np.uint64(32)
    inodes["i_extra_isize"] = EXTRA_ISIZE
    for name in ("atime", "ctime", "mtime", "crtime"):
        inodes[f"i_{name}"] = columns.time[items]
        inodes[f"i_{name}_extra"] = columns.time_extra[items]
    _fill_blocks(inodes, columns, items, mode & np.uint16(0xF000))
    attributed = np.flatnonzero(columns.attribute_set[items])
    inodes["i_xattrs"][attributed] = columns.attributes.words[columns.attribute_set[items[attributed]]]


def _fill_blocks(inodes: NDArray[np.void], columns: InodeColumns, items: NDArray[np.int64], kind: NDArray[np.uint16]) -> None:
    """i_block: extents without their place, a short symlink's target or device numbers; i_flags and i_blocks with it."""
    words = inodes.view("<u4").reshape(-1, _WORDS)
    inline = columns.inline
    regular = kind == Mode.REGULAR
    slow = (kind == Mode.SYMLINK) & (inline.length[items] >= FAST_SYMLINK)
    mapped = np.flatnonzero(regular | slow | (kind == Mode.DIRECTORY))
    words[mapped, WORD.FLAGS] = InodeFlag.EXTENTS

    lists = columns.extents
    first = lists.at[items].astype(np.int64)
    counts = lists.at[items + 1] - first
    entries = np.where(regular, counts, 1)[mapped]
    shallow = mapped[entries <= EXTENTS_IN_INODE]
    words[shallow, WORD.BLOCK] = EXTENT_MAGIC | entries[entries <= EXTENTS_IN_INODE] << 16
    words[shallow, WORD.BLOCK + 1] = EXTENTS_IN_INODE
    for number in range(EXTENTS_IN_INODE):
        rows = np.flatnonzero((counts > number) & (counts <= EXTENTS_IN_INODE))
        at = first[rows] + number
        words[rows, WORD.BLOCK + 3 + 3 * number] = lists.logical[at]
        words[rows, WORD.BLOCK + 4 + 3 * number] = lists.length[at]
    words[slow, WORD.BLOCK + 4] = 1

    files = np.flatnonzero(counts)
    total = lists.sums(items[files])
    inodes["i_blocks_lo"][files] = total * 8
    inodes["i_blocks_high"][files] = total * 8 >> 32
    inodes["i_blocks_lo"][slow] = 8

    fast = np.flatnonzero((inline.length[items] > 0) & ~slow)
    amounts = inline.word_counts[items[fast]]
    source = spread(inline.at[items[fast]].astype(np.int64), amounts)
    target = spread(fast * _WORDS + WORD.BLOCK, amounts)
    words.reshape(-1)[target] = inline.words[source]


def base_crcs(columns: InodeColumns, count: int, *, window: int = 16384) -> NDArray[np.uint32]:
    """The raw CRC, from zero, of each of ``count`` items' base inode."""
    crcs = np.empty(count, dtype=np.uint32)
    for start in range(0, count, window):
        items = np.arange(start, min(start + window, count))
        inodes = np.zeros(len(items), dtype=INODE)
        base_inodes(columns, items, inodes)
        crcs[items] = row_crcs(inodes.view("<u4").reshape(-1, _WORDS), 0)
    return crcs


def seal(
    inodes: NDArray[np.void], crcs: NDArray[np.uint32], numbers: NDArray[np.uint32], seed: int, patches: list[Patch]
) -> None:
    """Applies ``patches`` and writes the checksums.

    Args:
        inodes: From :func:`base_inodes`.
        crcs: Their base CRCs; used up.
        numbers: Their inode numbers.
        seed: CRC of the filesystem's seed with 264 zero bytes after it.
        patches: What the composition knows.
    """
    words = inodes.view("<u4").reshape(-1, _WORDS)
    for patch in patches:
        old = words[patch.rows, patch.word]
        new = old + patch.values
        crcs[patch.rows] ^= contribution(old ^ new, _FOLLOWING - 4 * patch.word)
        carried = new < old
        words[patch.rows, patch.word] = new
        if patch.word == WORD.BLOCKS and carried.any():
            rows = np.arange(len(words))[patch.rows][carried]
            patches.append(Patch(WORD.BLOCKS_HIGH, rows, np.ones(len(rows), dtype=np.uint32)))
    crcs ^= contribution(numbers, INODE.itemsize + 4)
    crcs ^= np.uint32(seed)
    inodes["i_checksum_lo"] = crcs
    inodes["i_checksum_hi"] = crcs >> 16
