"""ext4's structures on disk, field by field as the kernel documents them, as numpy dtypes.

Source: Documentation/filesystems/ext4 of the kernel (super.rst, group_descr.rst, inodes.rst, ifork.rst, directory.rst,
attributes.rst, journal.rst) and fs/ext4/ext4.h. Everything is little-endian but the journal, which is big-endian.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "ATTRIBUTE_ENTRY",
    "ATTRIBUTE_HEADER",
    "BLOCKS_PER_GROUP",
    "BLOCK_SIZE",
    "DIRECTORY_TAIL",
    "DX_ENTRY",
    "DX_ROOT_HEAD",
    "EXTENT",
    "EXTENT_HEADER",
    "EXTENT_INDEX",
    "GROUP_DESCRIPTOR",
    "INODE",
    "JOURNAL_SUPERBLOCK",
    "SUPERBLOCK",
    "Compat",
    "FileType",
    "GroupFlag",
    "Incompat",
    "InodeFlag",
    "Mode",
    "RoCompat",
]

BLOCK_SIZE = 4096
"""Bytes in a block; the only size that castoff composes."""
BLOCKS_PER_GROUP = 8 * BLOCK_SIZE
"""Blocks in a group: as many as one bitmap block has bits."""

SUPERBLOCK = np.dtype(
    [
        ("s_inodes_count", "<u4"),
        ("s_blocks_count_lo", "<u4"),
        ("s_r_blocks_count_lo", "<u4"),
        ("s_free_blocks_count_lo", "<u4"),
        ("s_free_inodes_count", "<u4"),
        ("s_first_data_block", "<u4"),
        ("s_log_block_size", "<u4"),
        ("s_log_cluster_size", "<u4"),
        ("s_blocks_per_group", "<u4"),
        ("s_clusters_per_group", "<u4"),
        ("s_inodes_per_group", "<u4"),
        ("s_mtime", "<u4"),
        ("s_wtime", "<u4"),
        ("s_mnt_count", "<u2"),
        ("s_max_mnt_count", "<u2"),
        ("s_magic", "<u2"),
        ("s_state", "<u2"),
        ("s_errors", "<u2"),
        ("s_minor_rev_level", "<u2"),
        ("s_lastcheck", "<u4"),
        ("s_checkinterval", "<u4"),
        ("s_creator_os", "<u4"),
        ("s_rev_level", "<u4"),
        ("s_def_resuid", "<u2"),
        ("s_def_resgid", "<u2"),
        ("s_first_ino", "<u4"),
        ("s_inode_size", "<u2"),
        ("s_block_group_nr", "<u2"),
        ("s_feature_compat", "<u4"),
        ("s_feature_incompat", "<u4"),
        ("s_feature_ro_compat", "<u4"),
        ("s_uuid", "u1", 16),
        ("s_volume_name", "S16"),
        ("s_last_mounted", "S64"),
        ("s_algorithm_usage_bitmap", "<u4"),
        ("s_prealloc_blocks", "u1"),
        ("s_prealloc_dir_blocks", "u1"),
        ("s_reserved_gdt_blocks", "<u2"),
        ("s_journal_uuid", "u1", 16),
        ("s_journal_inum", "<u4"),
        ("s_journal_dev", "<u4"),
        ("s_last_orphan", "<u4"),
        ("s_hash_seed", "<u4", 4),
        ("s_def_hash_version", "u1"),
        ("s_jnl_backup_type", "u1"),
        ("s_desc_size", "<u2"),
        ("s_default_mount_opts", "<u4"),
        ("s_first_meta_bg", "<u4"),
        ("s_mkfs_time", "<u4"),
        ("s_jnl_blocks", "<u4", 17),
        ("s_blocks_count_hi", "<u4"),
        ("s_r_blocks_count_hi", "<u4"),
        ("s_free_blocks_count_hi", "<u4"),
        ("s_min_extra_isize", "<u2"),
        ("s_want_extra_isize", "<u2"),
        ("s_flags", "<u4"),
        ("s_raid_stride", "<u2"),
        ("s_mmp_interval", "<u2"),
        ("s_mmp_block", "<u8"),
        ("s_raid_stripe_width", "<u4"),
        ("s_log_groups_per_flex", "u1"),
        ("s_checksum_type", "u1"),
        ("s_reserved_pad", "<u2"),
        ("s_kbytes_written", "<u8"),
        ("s_snapshot_inum", "<u4"),
        ("s_snapshot_id", "<u4"),
        ("s_snapshot_r_blocks_count", "<u8"),
        ("s_snapshot_list", "<u4"),
        ("s_error_count", "<u4"),
        ("s_first_error_time", "<u4"),
        ("s_first_error_ino", "<u4"),
        ("s_first_error_block", "<u8"),
        ("s_first_error_func", "S32"),
        ("s_first_error_line", "<u4"),
        ("s_last_error_time", "<u4"),
        ("s_last_error_ino", "<u4"),
        ("s_last_error_line", "<u4"),
        ("s_last_error_block", "<u8"),
        ("s_last_error_func", "S32"),
        ("s_mount_opts", "S64"),
        ("s_usr_quota_inum", "<u4"),
        ("s_grp_quota_inum", "<u4"),
        ("s_overhead_blocks", "<u4"),
        ("s_backup_bgs", "<u4", 2),
        ("s_encrypt_algos", "u1", 4),
        ("s_encrypt_pw_salt", "u1", 16),
        ("s_lpf_ino", "<u4"),
        ("s_prj_quota_inum", "<u4"),
        ("s_checksum_seed", "<u4"),
        ("s_wtime_hi", "u1"),
        ("s_mtime_hi", "u1"),
        ("s_mkfs_time_hi", "u1"),
        ("s_lastcheck_hi", "u1"),
        ("s_first_error_time_hi", "u1"),
        ("s_last_error_time_hi", "u1"),
        ("s_first_error_errcode", "u1"),
        ("s_last_error_errcode", "u1"),
        ("s_encoding", "<u2"),
        ("s_encoding_flags", "<u2"),
        ("s_orphan_file_inum", "<u4"),
        ("s_reserved", "<u4", 94),
        ("s_checksum", "<u4"),
    ]
)
assert SUPERBLOCK.itemsize == 1024

GROUP_DESCRIPTOR = np.dtype(
    [
        ("bg_block_bitmap_lo", "<u4"),
        ("bg_inode_bitmap_lo", "<u4"),
        ("bg_inode_table_lo", "<u4"),
        ("bg_free_blocks_count_lo", "<u2"),
        ("bg_free_inodes_count_lo", "<u2"),
        ("bg_used_dirs_count_lo", "<u2"),
        ("bg_flags", "<u2"),
        ("bg_exclude_bitmap_lo", "<u4"),
        ("bg_block_bitmap_csum_lo", "<u2"),
        ("bg_inode_bitmap_csum_lo", "<u2"),
        ("bg_itable_unused_lo", "<u2"),
        ("bg_checksum", "<u2"),
        ("bg_block_bitmap_hi", "<u4"),
        ("bg_inode_bitmap_hi", "<u4"),
        ("bg_inode_table_hi", "<u4"),
        ("bg_free_blocks_count_hi", "<u2"),
        ("bg_free_inodes_count_hi", "<u2"),
        ("bg_used_dirs_count_hi", "<u2"),
        ("bg_itable_unused_hi", "<u2"),
        ("bg_exclude_bitmap_hi", "<u4"),
        ("bg_block_bitmap_csum_hi", "<u2"),
        ("bg_inode_bitmap_csum_hi", "<u2"),
        ("bg_reserved", "<u4"),
    ]
)
assert GROUP_DESCRIPTOR.itemsize == 64

INODE = np.dtype(
    [
        ("i_mode", "<u2"),
        ("i_uid", "<u2"),
        ("i_size_lo", "<u4"),
        ("i_atime", "<u4"),
        ("i_ctime", "<u4"),
        ("i_mtime", "<u4"),
        ("i_dtime", "<u4"),
        ("i_gid", "<u2"),
        ("i_links_count", "<u2"),
        ("i_blocks_lo", "<u4"),
        ("i_flags", "<u4"),
        ("i_version_lo", "<u4"),
        ("i_block", "<u4", 15),
        ("i_generation", "<u4"),
        ("i_file_acl_lo", "<u4"),
        ("i_size_high", "<u4"),
        ("i_obso_faddr", "<u4"),
        ("i_blocks_high", "<u2"),
        ("i_file_acl_high", "<u2"),
        ("i_uid_high", "<u2"),
        ("i_gid_high", "<u2"),
        ("i_checksum_lo", "<u2"),
        ("i_reserved", "<u2"),
        ("i_extra_isize", "<u2"),
        ("i_checksum_hi", "<u2"),
        ("i_ctime_extra", "<u4"),
        ("i_mtime_extra", "<u4"),
        ("i_atime_extra", "<u4"),
        ("i_crtime", "<u4"),
        ("i_crtime_extra", "<u4"),
        ("i_version_hi", "<u4"),
        ("i_projid", "<u4"),
        ("i_xattrs", "<u4", 24),
    ]
)
assert INODE.itemsize == 256

EXTENT_HEADER = np.dtype(
    [("eh_magic", "<u2"), ("eh_entries", "<u2"), ("eh_max", "<u2"), ("eh_depth", "<u2"), ("eh_generation", "<u4")]
)
EXTENT = np.dtype([("ee_block", "<u4"), ("ee_len", "<u2"), ("ee_start_hi", "<u2"), ("ee_start_lo", "<u4")])
EXTENT_INDEX = np.dtype([("ei_block", "<u4"), ("ei_leaf_lo", "<u4"), ("ei_leaf_hi", "<u2"), ("ei_unused", "<u2")])

DIRECTORY_TAIL = np.dtype(
    [
        ("det_reserved_zero1", "<u4"),
        ("det_rec_len", "<u2"),
        ("det_reserved_zero2", "u1"),
        ("det_reserved_ft", "u1"),
        ("det_checksum", "<u4"),
    ]
)
DX_ROOT_HEAD = np.dtype(
    [
        ("dot_inode", "<u4"),
        ("dot_rec_len", "<u2"),
        ("dot_name_len", "u1"),
        ("dot_file_type", "u1"),
        ("dot_name", "S4"),
        ("dotdot_inode", "<u4"),
        ("dotdot_rec_len", "<u2"),
        ("dotdot_name_len", "u1"),
        ("dotdot_file_type", "u1"),
        ("dotdot_name", "S4"),
        ("reserved_zero", "<u4"),
        ("hash_version", "u1"),
        ("info_length", "u1"),
        ("indirect_levels", "u1"),
        ("unused_flags", "u1"),
    ]
)
DX_ENTRY = np.dtype([("hash", "<u4"), ("block", "<u4")])

ATTRIBUTE_HEADER = np.dtype(
    [
        ("h_magic", "<u4"),
        ("h_refcount", "<u4"),
        ("h_blocks", "<u4"),
        ("h_hash", "<u4"),
        ("h_checksum", "<u4"),
        ("h_reserved", "<u4", 3),
    ]
)
ATTRIBUTE_ENTRY = np.dtype(
    [
        ("e_name_len", "u1"),
        ("e_name_index", "u1"),
        ("e_value_offs", "<u2"),
        ("e_value_inum", "<u4"),
        ("e_value_size", "<u4"),
        ("e_hash", "<u4"),
    ]
)

JOURNAL_SUPERBLOCK = np.dtype(
    [
        ("h_magic", ">u4"),
        ("h_blocktype", ">u4"),
        ("h_sequence", ">u4"),
        ("s_blocksize", ">u4"),
        ("s_maxlen", ">u4"),
        ("s_first", ">u4"),
        ("s_sequence", ">u4"),
        ("s_start", ">u4"),
        ("s_errno", ">u4"),
        ("s_feature_compat", ">u4"),
        ("s_feature_incompat", ">u4"),
        ("s_feature_ro_compat", ">u4"),
        ("s_uuid", "u1", 16),
        ("s_nr_users", ">u4"),
        ("s_dynsuper", ">u4"),
        ("s_max_transaction", ">u4"),
        ("s_max_trans_data", ">u4"),
        ("s_checksum_type", "u1"),
        ("s_padding2", "u1", 3),
        ("s_num_fc_blks", ">u4"),
        ("s_head", ">u4"),
        ("s_padding", ">u4", 40),
        ("s_checksum", ">u4"),
        ("s_users", "u1", 16 * 48),
    ]
)
assert JOURNAL_SUPERBLOCK.itemsize == 1024


class Compat:
    """s_feature_compat."""

    HAS_JOURNAL = 0x4
    EXT_ATTR = 0x8
    DIR_INDEX = 0x20
    SPARSE_SUPER2 = 0x200


class Incompat:
    """s_feature_incompat."""

    FILETYPE = 0x2
    RECOVER = 0x4
    EXTENTS = 0x40
    BIT64 = 0x80
    FLEX_BG = 0x200
    EA_INODE = 0x400


class RoCompat:
    """s_feature_ro_compat."""

    LARGE_FILE = 0x2
    HUGE_FILE = 0x8
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    METADATA_CSUM = 0x400


class GroupFlag:
    """bg_flags."""

    INODE_UNINIT = 0x1
    BLOCK_UNINIT = 0x2
    INODE_ZEROED = 0x4


class InodeFlag:
    """i_flags."""

    INDEX = 0x1000
    EXTENTS = 0x80000
    EA_INODE = 0x200000


class Mode:
    """The file type in i_mode."""

    FIFO = 0x1000
    CHARACTER = 0x2000
    DIRECTORY = 0x4000
    BLOCK = 0x6000
    REGULAR = 0x8000
    SYMLINK = 0xA000


class FileType:
    """The file type in a directory entry."""

    REGULAR = 1
    DIRECTORY = 2
    CHARACTER = 3
    BLOCK = 4
    FIFO = 5
    SYMLINK = 7
