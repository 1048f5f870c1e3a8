"""The superblock: the features that castoff composes with, and what follows from layers and size alone.

Source: Documentation/filesystems/ext4/super.rst. Every time in it is fixed and past, the UUID is derived, and nothing depends on
the host: the same layers and size give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from castoff.ext4.checksum import raw_crc
from castoff.ext4.geometry import Geometry
from castoff.ext4.namehash import HASH_SEED
from castoff.ext4.numbering import FIRST_INODE
from castoff.ext4.structures import BLOCKS_PER_GROUP, INODE, SUPERBLOCK, Compat, Incompat, RoCompat
from castoff.image.digest import Digest

__all__ = ["FORMAT", "JOURNAL_INODE", "TIME", "derived_uuid", "superblock"]

FORMAT = 1
"""Raised with every change that changes a composition's bytes."""
JOURNAL_INODE = 8

_MAGIC = 0xEF53
_CLEAN = 1
_ERRORS_CONTINUE = 1
_SIGNED_HASH = 1
_HALF_MD4 = 1
_CRC32C = 1
_USER_XATTR_AND_ACL = 0x4 | 0x8
_JOURNAL_BACKUP_BLOCKS = 1
_LOG_GROUPS_PER_FLEX = 4
TIME = 1_600_000_000
"""Of making, writing and checking: 2020, before any clock that a guest may have, and never 0, which tools take for unset."""


def derived_uuid(layers: Sequence[Digest], size: int) -> bytes:
    """A UUID (version 8, RFC 9562) that follows from the layers, the size and the format."""
    text = "\n".join([f"castoff ext4 {FORMAT} {size}", *(layer.hex for layer in layers)])
    raw = bytearray(hashlib.sha256(text.encode()).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def superblock(
    layout: Geometry, uuid: bytes, *, free_blocks: int, used_inodes: int, journal: Sequence[int], value_inodes: bool
) -> bytes:
    """The 1024 bytes of the superblock.

    Args:
        layout: Where everything lies.
        uuid: 16 bytes.
        free_blocks: Free blocks of all groups.
        used_inodes: Used inodes, the filesystem's own included.
        journal: The 15 words of the journal's i_block, kept as a backup.
        value_inodes: Whether values of extended attributes have inodes of their own.
    """
    record = np.zeros(1, dtype=SUPERBLOCK)
    journal_size = layout.journal_blocks * 4096
    overhead = layout.journal + layout.journal_blocks
    values: dict[str, object] = {
        "s_inodes_count": layout.inodes,
        "s_blocks_count_lo": layout.blocks & 0xFFFFFFFF,
        "s_blocks_count_hi": layout.blocks >> 32,
        "s_free_blocks_count_lo": free_blocks & 0xFFFFFFFF,
        "s_free_blocks_count_hi": free_blocks >> 32,
        "s_free_inodes_count": layout.inodes - used_inodes,
        "s_log_block_size": 2,
        "s_log_cluster_size": 2,
        "s_blocks_per_group": BLOCKS_PER_GROUP,
        "s_clusters_per_group": BLOCKS_PER_GROUP,
        "s_inodes_per_group": layout.inodes_per_group,
        "s_wtime": TIME,
        "s_max_mnt_count": 0xFFFF,
        "s_magic": _MAGIC,
        "s_state": _CLEAN,
        "s_errors": _ERRORS_CONTINUE,
        "s_lastcheck": TIME,
        "s_rev_level": 1,
        "s_first_ino": FIRST_INODE,
        "s_inode_size": INODE.itemsize,
        "s_feature_compat": Compat.HAS_JOURNAL | Compat.EXT_ATTR | Compat.DIR_INDEX | Compat.SPARSE_SUPER2,
        "s_feature_incompat": Incompat.FILETYPE
        | Incompat.EXTENTS
        | Incompat.BIT64
        | Incompat.FLEX_BG
        | (Incompat.EA_INODE if value_inodes else 0),
        "s_feature_ro_compat": RoCompat.LARGE_FILE
        | RoCompat.HUGE_FILE
        | RoCompat.DIR_NLINK
        | RoCompat.EXTRA_ISIZE
        | RoCompat.METADATA_CSUM,
        "s_uuid": np.frombuffer(uuid, dtype=np.uint8),
        "s_journal_inum": JOURNAL_INODE,
        "s_hash_seed": HASH_SEED,
        "s_def_hash_version": _HALF_MD4,
        "s_jnl_backup_type": _JOURNAL_BACKUP_BLOCKS,
        "s_desc_size": 64,
        "s_default_mount_opts": _USER_XATTR_AND_ACL,
        "s_mkfs_time": TIME,
        "s_jnl_blocks": [*journal, journal_size >> 32, journal_size & 0xFFFFFFFF],
        "s_min_extra_isize": 32,
        "s_want_extra_isize": 32,
        # Left at 0, the kernel guesses its own machine's signedness at the first mount, and names over 127 hash otherwise.
        "s_flags": _SIGNED_HASH,
        "s_log_groups_per_flex": _LOG_GROUPS_PER_FLEX,
        "s_checksum_type": _CRC32C,
        "s_overhead_blocks": min(overhead, 0xFFFFFFFF),
    }
    for name, value in values.items():
        record[name] = value
    record["s_checksum"] = raw_crc(0xFFFFFFFF, record.tobytes()[:-4])
    return record.tobytes()
