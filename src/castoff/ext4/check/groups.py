"""Superblock, journal, group descriptors and bitmaps, against each other and against what the inodes use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from castoff.ext4.check.image import BLOCK, Image, checksum
from castoff.ext4.structures import JOURNAL_SUPERBLOCK

__all__ = ["check_groups", "check_journal", "check_superblock"]

_MASK = 0xFFFFFFFF
_PER_GROUP = 8 * BLOCK
_INODE_UNINIT, _BLOCK_UNINIT, _ZEROED = 1, 2, 4


def check_superblock(image: Image) -> None:
    """The superblock by itself, and what lies between it and the descriptors."""
    raw = bytes(image.view[1024:2048])
    if checksum(_MASK, raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        image.report("superblock", "wrong checksum")
    superblock = image.superblock
    if any(image.view[:1024]) or any(image.view[2048:BLOCK]):
        image.report("superblock", "something stands around it")
    if int(superblock["s_inodes_count"]) != image.groups * image.inodes_per_group:
        image.report("superblock", "its count of inodes is not that of its groups")
    if int(superblock["s_flags"]) & 3 != 1:
        image.report("superblock", "it does not say that directory hashes are signed")
    if superblock["s_state"] != 1 or superblock["s_first_ino"] != 11 or superblock["s_def_hash_version"] != 1:
        image.report("superblock", "it is not clean, or of another kind")
    end = BLOCK + len(image.descriptors) * 64
    if any(image.view[end : -(-end // BLOCK) * BLOCK]):
        image.report("descriptors", "something stands behind the last")


def check_journal(image: Image, first: int, blocks: int, inode_block: bytes) -> None:
    """The journal's superblock, and the copy of its inode's extents in the filesystem's."""
    raw = bytes(image.block(first)[:1024])
    journal = np.frombuffer(raw, dtype=JOURNAL_SUPERBLOCK)[0]
    at = JOURNAL_SUPERBLOCK.fields
    assert at is not None
    place = at["s_checksum"][1]
    blank = raw[:place] + bytes(4) + raw[place + 4 :]
    if journal["h_magic"] != 0xC03B3998 or journal["h_blocktype"] != 4 or journal["s_blocksize"] != BLOCK:
        image.report("journal", "its superblock is wrong")
    if checksum(_MASK, blank) != int(journal["s_checksum"]):
        image.report("journal", "wrong checksum")
    if int(journal["s_maxlen"]) != blocks or journal["s_start"] != 0 or journal["s_errno"] != 0:
        image.report("journal", "it is of another size, or not empty")
    if any(image.block(first)[1024:]):
        image.report("journal", "something stands behind its superblock")
    size = blocks * BLOCK
    backup = inode_block + (size >> 32).to_bytes(4, "little") + (size & _MASK).to_bytes(4, "little")
    if image.superblock["s_jnl_blocks"].tobytes() != backup or image.superblock["s_jnl_backup_type"] != 1:
        image.report("superblock", "its copy of the journal's inode is not what it copies")


def check_groups(image: Image, used: NDArray[np.bool_], inodes: NDArray[np.bool_], directories: NDArray[np.int64]) -> None:
    """Descriptors and bitmaps of all groups.

    Args:
        image: The image.
        used: For each block whether something uses it.
        inodes: For each inode (0 is number 1) whether it is used.
        directories: The count of directories of each group.
    """
    free_blocks = free_inodes = 0
    per_group = image.inodes_per_group
    for group in range(image.groups):
        where = f"group {group}"
        raw = image.descriptors[group].tobytes()
        if checksum(image.seed, group.to_bytes(4, "little"), raw[:30], b"\0\0", raw[32:]) & 0xFFFF != int.from_bytes(
            raw[30:32], "little"
        ):
            image.report(where, "its descriptor has a wrong checksum")
        mine = used[group * _PER_GROUP : (group + 1) * _PER_GROUP]
        own = inodes[group * per_group : (group + 1) * per_group]
        free_blocks += _check_blocks(image, group, mine)
        free_inodes += _check_inodes(image, group, own)
        if image.wide(group, "bg_used_dirs_count", 16) != directories[group]:
            image.report(where, "its count of directories is wrong")
        if int(image.descriptors[group]["bg_flags"]) & ~3 != _ZEROED:
            image.report(where, "its inode table is not marked as zeroed")
    counted = int(image.superblock["s_free_blocks_count_lo"]) | int(image.superblock["s_free_blocks_count_hi"]) << 32
    if counted != free_blocks or int(image.superblock["s_free_inodes_count"]) != free_inodes:
        image.report("superblock", "its counts of free blocks or inodes are wrong")


def _crc(image: Image, group: int, name: str) -> int:
    return image.wide(group, name, 16)


def _check_blocks(image: Image, group: int, used: NDArray[np.bool_]) -> int:
    """A group's block bitmap and counts; its free blocks."""
    where = f"group {group}"
    bitmap = bytes(image.block(image.wide(group, "bg_block_bitmap")))
    free = len(used) - int(used.sum())
    if int(image.descriptors[group]["bg_flags"]) & _BLOCK_UNINIT:
        if free != len(used) or any(bitmap) or _crc(image, group, "bg_block_bitmap_csum") or group in (0, image.groups - 1):
            image.report(where, "it has no block bitmap and needs one, or has one and says not")
    else:
        expected = np.ones(_PER_GROUP, dtype=bool)
        expected[: len(used)] = used
        if np.packbits(expected, bitorder="little").tobytes() != bitmap:
            image.report(where, "its block bitmap is not what is used")
        if checksum(image.seed, bitmap) != _crc(image, group, "bg_block_bitmap_csum"):
            image.report(where, "its block bitmap has a wrong checksum")
    if image.wide(group, "bg_free_blocks_count", 16) != free:
        image.report(where, "its count of free blocks is wrong")
    return free


def _check_inodes(image: Image, group: int, used: NDArray[np.bool_]) -> int:
    """A group's inode bitmap and counts; its free inodes."""
    where = f"group {group}"
    bitmap = bytes(image.block(image.wide(group, "bg_inode_bitmap")))
    free = len(used) - int(used.sum())
    unused = len(used) - (int(np.flatnonzero(used)[-1]) + 1 if used.any() else 0)
    if int(image.descriptors[group]["bg_flags"]) & _INODE_UNINIT:
        if used.any() or any(bitmap) or _crc(image, group, "bg_inode_bitmap_csum"):
            image.report(where, "it has no inode bitmap and needs one, or has one and says not")
    else:
        bits = np.packbits(used, bitorder="little").tobytes()
        if bits + b"\xff" * (BLOCK - len(bits)) != bitmap:
            image.report(where, "its inode bitmap is not what is used")
        if checksum(image.seed, bitmap[: len(bits)]) != _crc(image, group, "bg_inode_bitmap_csum"):
            image.report(where, "its inode bitmap has a wrong checksum")
    if image.wide(group, "bg_free_inodes_count", 16) != free or image.wide(group, "bg_itable_unused", 16) != unused:
        image.report(where, "its counts of free inodes are wrong")
    return free
