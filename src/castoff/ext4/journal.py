"""The journal: a file of holes, but for its superblock.

Source: Documentation/filesystems/ext4/journal.rst. Its features are those that the kernel turns on when it mounts a filesystem
with metadata_csum and 64bit, so that mounting changes nothing but sequence numbers.
"""

from __future__ import annotations

import numpy as np

from castoff.ext4.checksum import raw_crc
from castoff.ext4.structures import BLOCK_SIZE, JOURNAL_SUPERBLOCK

__all__ = ["journal_superblock"]

_MAGIC = 0xC03B3998
_SUPERBLOCK_V2 = 4
_REVOKE, _BIT64, _CSUM_V3 = 0x1, 0x2, 0x10
_CRC32C = 4
_SEED = 0xFFFFFFFF


def journal_superblock(blocks: int, uuid: bytes) -> bytes:
    """The first 1024 bytes of an empty journal of ``blocks`` blocks."""
    record = np.zeros(1, dtype=JOURNAL_SUPERBLOCK)
    values = {
        "h_magic": _MAGIC,
        "h_blocktype": _SUPERBLOCK_V2,
        "s_blocksize": BLOCK_SIZE,
        "s_maxlen": blocks,
        "s_first": 1,
        "s_sequence": 1,
        "s_feature_incompat": _REVOKE | _BIT64 | _CSUM_V3,
        "s_nr_users": 1,
        "s_checksum_type": _CRC32C,
    }
    for name, value in values.items():
        record[name] = value
    record["s_uuid"] = np.frombuffer(uuid, dtype=np.uint8)
    record["s_checksum"] = raw_crc(_SEED, record.tobytes())
    return record.tobytes()
