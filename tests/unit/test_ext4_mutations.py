"""castoff.ext4.check notices a flipped bit, and a wrong field under a right checksum, in every structure there is."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from castoff.errors import Invalid
from castoff.ext4.check.filesystem import check
from castoff.ext4.check.image import Image, checksum
from castoff.ext4.compose import Composition, compose
from castoff.ext4.structures import GROUP_DESCRIPTOR, INODE, JOURNAL_SUPERBLOCK, SUPERBLOCK
from castoff.ext4.tables import compile_tables
from castoff.image.digest import Digest
from castoff.layers.toc import BLOCK, Kind
from ext4_toc import Row, build_toc

MIB = 1 << 20
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, 5, identity) for tag, identity in ((1, 2**32 - 1), (2, 1000), (4, 2**32 - 1), (16, 0), (32, 0))
)


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with every kind of structure, and how it was made."""

    path: Path
    data: bytes
    composition: Composition
    numbers: dict[bytes, int]
    """Inode numbers by path."""


LARGE = (b"user.large", bytes(range(250)) * 24)
"""Its value has an inode of its own, the last of all."""


def rows() -> Iterator[Row]:
    yield Row(b"wide", Kind.DIRECTORY, mode=0o755, mtime=1)
    for number in range(60):
        yield Row(b"wide/" + bytes([97 + number % 26]) * (195 + number), mtime=2)
    yield Row(b"file", contents=b"x" * 5000, mtime=3, mtime_ns=7)
    yield Row(b"sparse", contents=b"s" * (800 * BLOCK), holes=frozenset(range(1, 800, 2)), mtime=4)
    yield Row(b"some", contents=b"s" * (6 * BLOCK), holes=frozenset({1, 3}), mtime=4)
    yield Row(b"link", Kind.SYMLINK, target=b"file")
    yield Row(b"long", Kind.SYMLINK, target=b"t" * 100)
    yield Row(b"device", Kind.CHARACTER, device=(1, 3))
    yield Row(b"large", Kind.BLOCK, device=(259, 300))
    yield Row(b"fifo", Kind.FIFO)
    yield Row(b"inside", attributes=((b"user.a", b"1"), (b"security.b", b"22")))
    yield Row(b"block", attributes=((b"user.a", bytes(range(200))), (b"system.posix_acl_access", ACL), (b"trusted.c", b"")))
    yield Row(b"shared", attributes=((b"user.a", bytes(range(200))), (b"system.posix_acl_access", ACL), (b"trusted.c", b"")))
    yield Row(b"valued", attributes=(LARGE, (b"user.b", b"b"), (b"user.again", LARGE[1])))
    yield Row(b"valued too", attributes=(LARGE,))
    yield Row(b"hard", Kind.HARDLINK, target=b"file")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    toc, segment = build_toc(list(rows()))
    composition = compose([(Digest.of(b"layer"), compile_tables(toc))], size=16 * MIB)
    path = tmp_path_factory.mktemp("sample") / "rootfs"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    composition.write(descriptor)
    os.pwrite(descriptor, segment, composition.placements[0].offset)
    os.close(descriptor)
    assert check(path) == []
    numbering = composition.numbering
    names = composition.stack.names
    numbers = {names[int(item)]: int(number) for item, number in zip(numbering.entry_item, numbering.entry_number, strict=True)}
    return Sample(path, path.read_bytes(), composition, numbers)


def noticed(sample: Sample, changes: list[tuple[int, bytes]]) -> list[str]:
    """What the checker says of the image with ``changes`` made, which are taken back."""
    with sample.path.open("r+b", buffering=0) as file:
        for offset, new in changes:
            os.pwrite(file.fileno(), new, offset)
        try:
            return [str(problem) for problem in check(sample.path)]
        except Invalid as error:
            return [error.what]
        finally:
            for offset, new in changes:
                os.pwrite(file.fileno(), sample.data[offset : offset + len(new)], offset)


def inode_offset(sample: Sample, number: int) -> int:
    return sample.composition.layout.inode_tables * BLOCK + (number - 1) * 256


def value_inode(sample: Sample) -> int:
    return max(sample.numbers.values()) + 1


def mapped_block(sample: Sample, name: bytes, word: int = 5) -> int:
    """The block that word ``word`` of an inode's i_block names."""
    number = 2 if name == b"" else sample.numbers[name]
    at = inode_offset(sample, number) + 40 + 4 * word
    return int.from_bytes(sample.data[at : at + 4], "little")


def regions(sample: Sample) -> dict[str, tuple[int, int]]:
    """(offset, length) of one of each structure."""
    layout = sample.composition.layout
    blocks = {
        "directory": mapped_block(sample, b""),
        "htree root": mapped_block(sample, b"wide"),
        "htree leaf": mapped_block(sample, b"wide") + 1,
        "extent leaf": mapped_block(sample, b"sparse", 4),
        "symlink": mapped_block(sample, b"long"),
        "attributes": struct.unpack_from("<I", sample.data, inode_offset(sample, sample.numbers[b"block"]) + 104)[0],
        "value": int.from_bytes(sample.data[(at := inode_offset(sample, value_inode(sample)) + 60) : at + 4], "little"),
        "entry of a value": struct.unpack_from("<I", sample.data, inode_offset(sample, sample.numbers[b"valued"]) + 104)[0],
        "block bitmap": layout.block_bitmaps,
        "inode bitmap": layout.inode_bitmaps,
        "journal": layout.journal,
    }
    found = {name: (block * BLOCK, BLOCK) for name, block in blocks.items()}
    found["superblock"] = (1024, 1024)
    found["descriptor"] = (BLOCK, 64)
    for name, number in sample.numbers.items():
        if len(name) < 100:
            found[f"inode of {name.decode()}"] = (inode_offset(sample, number), 256)
    found["inode of a value"] = (inode_offset(sample, value_inode(sample)), 256)
    found["inode of the root"] = (inode_offset(sample, 2), 256)
    found["inode of the journal"] = (inode_offset(sample, 8), 256)
    found["reserved inode"] = (inode_offset(sample, 3), 256)
    return found


STRUCTURES = [
    *("superblock", "descriptor", "block bitmap", "inode bitmap", "journal", "directory", "htree root", "htree leaf"),
    *(
        "extent leaf",
        "symlink",
        "attributes",
        "value",
        "entry of a value",
        "inode of a value",
        "reserved inode",
        "inode of the root",
        "inode of the journal",
    ),
    *(f"inode of {name}" for name in ("wide", "file", "sparse", "some", "link", "long", "device", "fifo", "inside", "block")),
]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_flipped_bit_is_noticed(sample: Sample, structure: str) -> None:
    """One bit in each of 24 places all over the structure, its first and last byte among them."""
    offset, length = regions(sample)[structure]
    if structure == "symlink":  # the target itself is contents, like a file's
        offset, length = offset + 100, length - 100
    random = np.random.default_rng(len(structure) + length)
    places = {0, length - 1, *random.integers(0, length, 22).tolist()}
    for place in sorted(places):
        bit = 1 << int(random.integers(0, 8))
        at = offset + place
        assert noticed(sample, [(at, bytes([sample.data[at] ^ bit]))]), f"bit {bit:#x} of byte {place}"


def sealed_inode(sample: Sample, number: int, raw: bytearray) -> None:
    raw[124:126] = raw[130:132] = b"\0\0"
    with Image.open(sample.path) as image:
        seed = checksum(image.seed, struct.pack("<II", number, struct.unpack_from("<I", raw, 100)[0]))
    crc = checksum(seed, bytes(raw))
    raw[124:126], raw[130:132] = struct.pack("<H", crc & 0xFFFF), struct.pack("<H", crc >> 16)


UNCHECKABLE = {
    *("i_uid", "i_gid", "i_uid_high", "i_gid_high", "i_atime", "i_ctime", "i_mtime", "i_crtime"),
    *("i_ctime_extra", "i_mtime_extra", "i_atime_extra", "i_crtime_extra", "i_checksum_lo", "i_checksum_hi"),
}
"""Fields that may have any value: nothing else in the filesystem says what they should be."""
FREE = {
    **dict.fromkeys(("file", "sparse", "some"), ("i_size_high",)),  # it may end with a hole
    **dict.fromkeys(("inside", "block"), ("i_size_lo", "i_size_high")),
    **dict.fromkeys(("link", "device"), ("i_block",)),  # the target, the numbers
}


@pytest.mark.parametrize("name", ["wide", "file", "sparse", "some", "link", "long", "device", "fifo", "inside", "block"])
def test_a_wrong_field_of_an_inode_under_a_right_checksum_is_noticed(sample: Sample, name: str) -> None:
    """Every field that anything else depends on."""
    number = sample.numbers[name.encode()]
    offset = inode_offset(sample, number)
    fields = INODE.fields
    assert fields is not None
    for field, (kind, place, *_) in fields.items():
        if field in UNCHECKABLE or field in FREE.get(name, ()):
            continue
        raw = bytearray(sample.data[offset : offset + 256])
        # The type's lowest bit in i_mode; permissions may be any.
        raw[place + 1 if field == "i_mode" else place] ^= 0x10 if field == "i_mode" else 1
        if field == "i_size_lo" and name in ("file", "sparse", "some"):
            # A file may end anywhere in its last block: a size is wrong where it contradicts the blocks.
            raw[place : place + 4] = b"\1\0\0\0"
        if field == "i_blocks_high" or kind.itemsize:
            sealed_inode(sample, number, raw)
        assert noticed(sample, [(offset, bytes(raw))]), field


def test_a_wrong_field_of_a_descriptor_under_a_right_checksum_is_noticed(sample: Sample) -> None:
    """Every field."""
    fields = GROUP_DESCRIPTOR.fields
    assert fields is not None
    for field, (_, place, *_) in fields.items():
        if field in ("bg_exclude_bitmap_lo", "bg_exclude_bitmap_hi", "bg_reserved"):
            continue
        raw = bytearray(sample.data[BLOCK : BLOCK + 64])
        raw[place] ^= 1
        if field != "bg_checksum":
            with Image.open(sample.path) as image:
                crc = checksum(image.seed, bytes(4), bytes(raw[:30]), b"\0\0", bytes(raw[32:]))
            raw[30:32] = struct.pack("<H", crc & 0xFFFF)
        assert noticed(sample, [(BLOCK, bytes(raw))]), field


@pytest.mark.parametrize(
    "field",
    [
        *("s_inodes_count", "s_blocks_count_lo", "s_free_blocks_count_lo", "s_free_inodes_count", "s_log_block_size"),
        *("s_blocks_per_group", "s_inodes_per_group", "s_magic", "s_state", "s_first_ino", "s_inode_size", "s_uuid"),
        *("s_feature_incompat", "s_hash_seed", "s_def_hash_version", "s_jnl_backup_type", "s_desc_size", "s_jnl_blocks"),
        *("s_free_blocks_count_hi", "s_flags", "s_blocks_count_hi"),
    ],
)
def test_a_wrong_field_of_the_superblock_under_a_right_checksum_is_noticed(sample: Sample, field: str) -> None:
    """Every field that other structures depend on."""
    fields = SUPERBLOCK.fields
    assert fields is not None
    place = int(fields[field][1])
    raw = bytearray(sample.data[1024:2048])
    raw[place] ^= 1
    raw[-4:] = struct.pack("<I", checksum(0xFFFFFFFF, bytes(raw[:-4])))
    assert noticed(sample, [(1024, bytes(raw))])


@pytest.mark.parametrize("field", ["h_magic", "h_blocktype", "s_blocksize", "s_maxlen", "s_start", "s_errno"])
def test_a_wrong_field_of_the_journal_under_a_right_checksum_is_noticed(sample: Sample, field: str) -> None:
    """What says that the journal is whole and empty."""
    fields = JOURNAL_SUPERBLOCK.fields
    assert fields is not None
    offset = sample.composition.layout.journal * BLOCK
    raw = bytearray(sample.data[offset : offset + 1024])
    raw[int(fields[field][1]) + 3] ^= 1
    place = int(fields["s_checksum"][1])
    raw[place : place + 4] = bytes(4)
    raw[place : place + 4] = struct.pack(">I", checksum(0xFFFFFFFF, bytes(raw)))
    assert noticed(sample, [(offset, bytes(raw))])


def seed_of(sample: Sample, name: bytes) -> int:
    with Image.open(sample.path) as image:
        return image.inode(2 if name == b"" else sample.numbers[name]).seed


def test_wrong_entries_of_a_directory_under_a_right_checksum_are_noticed(sample: Sample) -> None:
    """Inode, length, name and type of an entry, ``.`` and ``..``."""
    offset = mapped_block(sample, b"") * BLOCK
    seed = seed_of(sample, b"")
    for place in (0, 4, 6, 7, 8, 12, 16, 18, 20, 24, 28, 30, 31):
        raw = bytearray(sample.data[offset : offset + BLOCK])
        raw[place] ^= 2
        raw[-4:] = struct.pack("<I", checksum(seed, bytes(raw[:-12])))
        found = noticed(sample, [(offset, bytes(raw))])
        # Another name of the same length is as good as any, where the order of hashes does not matter.
        assert found or place > 31, place


def test_wrong_fields_of_an_index_under_a_right_checksum_are_noticed(sample: Sample) -> None:
    """Its head, its counts, and every hash and block in it."""
    offset = mapped_block(sample, b"wide") * BLOCK
    seed = seed_of(sample, b"wide")
    count = struct.unpack_from("<H", sample.data, offset + 34)[0]
    assert count > 2
    for place in (0, 4, 8, 12, 16, 20, 24, 28, 29, 30, 31, 32, 34, *range(36, 32 + 8 * count, 4)):
        raw = bytearray(sample.data[offset : offset + BLOCK])
        # The upper half of a hash: its lowest bits may be any between two names.
        raw[place + (3 if place >= 40 and place % 8 == 0 else 0)] ^= 0x40 if place >= 40 and place % 8 == 0 else 1
        used = 32 + 8 * min(struct.unpack_from("<H", raw, 34)[0], 507)
        raw[-4:] = struct.pack("<I", checksum(seed, bytes(raw[:used]), bytes(8)))
        assert noticed(sample, [(offset, bytes(raw))]), place


def test_a_name_in_the_wrong_leaf_is_noticed(sample: Sample) -> None:
    """Two leaves of an index change places, each under its checksum: every hash is out of its bounds."""
    first = (mapped_block(sample, b"wide") + 1) * BLOCK
    one, two = sample.data[first : first + BLOCK], sample.data[first + BLOCK : first + 2 * BLOCK]
    assert noticed(sample, [(first, two + one)])


def test_wrong_extents_in_a_block_under_a_right_checksum_are_noticed(sample: Sample) -> None:
    """Head and entries of a leaf of an extent tree."""
    offset = mapped_block(sample, b"sparse", 4) * BLOCK
    seed = seed_of(sample, b"sparse")
    for place in (0, 2, 4, 6, 8, 12, 16, 18, 20, 24, 28):
        raw = bytearray(sample.data[offset : offset + BLOCK])
        raw[place] = 0 if place == 24 else raw[place] ^ 3  # the second extent may start anywhere after the first
        raw[-4:] = struct.pack("<I", checksum(seed, bytes(raw[:-4])))
        assert noticed(sample, [(offset, bytes(raw))]), place


def test_wrong_attributes_under_a_right_checksum_are_noticed(sample: Sample) -> None:
    """The head of an attribute block, every field of an entry, and a byte of a value."""
    block = struct.unpack_from("<I", sample.data, inode_offset(sample, sample.numbers[b"block"]) + 104)[0]
    offset = block * BLOCK
    with Image.open(sample.path) as image:
        seed = image.seed
    for place in (0, 4, 8, 12, 20, 32, 33, 34, 36, 40, 44, 48, BLOCK - 1):
        raw = bytearray(sample.data[offset : offset + BLOCK])
        raw[place] ^= 8
        blank = raw[:16] + bytes(4) + raw[20:]
        raw[16:20] = struct.pack("<I", checksum(seed, struct.pack("<Q", block), bytes(blank)))
        assert noticed(sample, [(offset, bytes(raw))]), place


def test_wrong_values_under_right_checksums_are_noticed(sample: Sample) -> None:
    """Every field of a value's inode, and what an entry says of it: number, size, hash."""
    number = value_inode(sample)
    at = inode_offset(sample, number)
    with Image.open(sample.path) as image:
        seed = image.seed
    for place in (0, 2, 4, 8, 12, 16, 20, 24, 26, 28, 32, 36, 40, 56, 60, 104, 108, 120, 132, 144, 148, 152, 156, 160):
        raw = bytearray(sample.data[at : at + 256])
        raw[place] ^= 2
        assert noticed(sample, [(at, sealed(bytes(raw), number, seed))]), place
    assert not noticed(sample, [(at, sealed(sample.data[at : at + 256], number, seed))])
    block = regions(sample)["entry of a value"][0] // BLOCK
    for place in (36, 40, 44):
        raw = bytearray(sample.data[block * BLOCK : (block + 1) * BLOCK])
        raw[place] ^= 1
        raw[16:20] = struct.pack("<I", checksum(seed, struct.pack("<Q", block), bytes(raw[:16] + bytes(4) + raw[20:])))
        assert noticed(sample, [(block * BLOCK, bytes(raw))]), place


def sealed(raw: bytes, number: int, seed: int) -> bytes:
    """An inode under a right checksum."""
    crc = checksum(checksum(seed, struct.pack("<II", number, 0)), raw[:124] + b"\0\0" + raw[126:130] + b"\0\0" + raw[132:])
    return raw[:124] + struct.pack("<H", crc & 0xFFFF) + raw[126:130] + struct.pack("<H", crc >> 16) + raw[132:]


def test_a_missing_or_foreign_bit_in_a_bitmap_is_noticed(sample: Sample) -> None:
    """Each under a right checksum of bitmap and descriptor."""
    layout = sample.composition.layout
    with Image.open(sample.path) as image:
        seed, inodes = image.seed, image.inodes_per_group // 8
    for block, low, high, length in (
        (layout.block_bitmaps, 24, 56, BLOCK),
        (layout.inode_bitmaps, 26, 58, inodes),
    ):
        for place in (0, 5, length - 1):
            raw = bytearray(sample.data[block * BLOCK : (block + 1) * BLOCK])
            raw[place] ^= 4
            descriptor = bytearray(sample.data[BLOCK : BLOCK + 64])
            crc = checksum(seed, bytes(raw[:length]))
            descriptor[low : low + 2], descriptor[high : high + 2] = struct.pack("<H", crc & 0xFFFF), struct.pack("<H", crc >> 16)
            crc = checksum(seed, bytes(4), bytes(descriptor[:30]), b"\0\0", bytes(descriptor[32:]))
            descriptor[30:32] = struct.pack("<H", crc & 0xFFFF)
            changes = [(block * BLOCK, bytes(raw)), (BLOCK, bytes(descriptor))]
            assert noticed(sample, changes), (block, place)
