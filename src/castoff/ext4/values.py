"""Values of extended attributes that stand in inodes of their own (the feature ea_inode, Linux 4.13).

Source: fs/ext4/xattr.c. Such an inode has no name. Its access time is the value's hash, its version the count of entries that
name it, its change time that count's upper half. An entry names it in e_value_inum, and its e_hash is over its name and the
value's hash, which depends on the filesystem's seed: what a layer's tables keep of such an entry has neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.ext4.attributes import AttributeSets, chain, entry_hash, entry_hashes
from castoff.ext4.checksum import advance, raw_crc, row_crcs
from castoff.ext4.extents import EXTENT_MAGIC, EXTENTS_IN_INODE
from castoff.ext4.inodes import EXTRA_ISIZE, seal
from castoff.ext4.stack import Stack
from castoff.ext4.structures import BLOCK_SIZE, INODE, InodeFlag, Mode

__all__ = ["Values", "find_values", "finish_block", "large_entries", "value_blocks", "value_inodes"]

_HASH = 3
"""Word of an attribute block's header."""


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """All distinct values of a filesystem that have an inode, in the order of their inode numbers."""

    contents: list[bytes]
    references: list[int]
    """Entries that name each; a block that inodes share counts once."""
    number: dict[tuple[int, int], int]
    """(layer, its value) -> which it is."""
    charged: NDArray[np.int64]
    """[attribute blocks] blocks of the values that its entries name, as often as they do: i_blocks of its inodes counts them."""
    first: NDArray[np.int64]
    """[values + 1] where each one's blocks start, from the first of all on."""

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def blocks(self) -> int:
        """Blocks of all."""
        return int(self.first[-1])


def find_values(stack: Stack, sources: NDArray[np.int64]) -> Values:
    """The values that the attribute blocks ``sources`` (layer, block, sharers) name, equal ones once."""
    contents: list[bytes] = []
    references: list[int] = []
    number: dict[tuple[int, int], int] = {}
    known: dict[bytes, int] = {}
    charged = np.zeros(len(sources), dtype=np.int64)
    for row, (layer, block, _) in enumerate(sources.tolist()):
        sets = stack.layers[layer].inodes.attributes
        for _, value in large_entries(sets, block):
            if (layer, value) not in number:
                content = sets.value_pool[sets.value_offsets[value] : sets.value_offsets[value + 1]].tobytes()
                number[layer, value] = known.setdefault(content, len(contents))
                if known[content] == len(contents):
                    contents.append(content)
                    references.append(0)
            references[number[layer, value]] += 1
            charged[row] += -(-len(contents[number[layer, value]]) // BLOCK_SIZE)
    counts = [-(-len(content) // BLOCK_SIZE) for content in contents]
    return Values(contents, references, number, charged, np.cumsum([0, *counts], dtype=np.int64))


def large_entries(sets: AttributeSets, block: int) -> list[tuple[int, int]]:
    """Of a block's entries those that have a value elsewhere: where each begins, and which of the layer's values it is."""
    first, last = np.searchsorted(sets.large_block, (block, block + 1))
    return list(zip(sets.large_entry[first:last].tolist(), sets.large_value[first:last].tolist(), strict=True))


def finish_block(
    words: NDArray[np.uint32], entries: list[tuple[int, int]], values: Values, layer: int, first: int, seed: int
) -> None:
    """Writes into an attribute block of ``layer`` what its ``entries`` name; ``first`` is the inode number of the first value."""
    image = words.view(np.uint8)
    for at, value in entries:
        which = values.number[layer, value]
        name = image[at + 16 : at + 16 + int(image[at])].tobytes()
        words[at // 4 + 1] = first + which
        words[at // 4 + 3] = entry_hash(name, raw_crc(seed, values.contents[which]).to_bytes(4, "little"))
    if entries:
        words[_HASH] = chain(entry_hashes(image.tobytes()))


def value_inodes(values: Values, number: int, block: int, seed: int) -> NDArray[np.void]:
    """The inodes of all values, from ``number`` on; their blocks follow each other from ``block`` on."""
    inodes = np.zeros(len(values), dtype=INODE)
    if not len(values):
        return inodes
    count = np.diff(values.first)
    inodes["i_mode"] = Mode.REGULAR | 0o600
    inodes["i_size_lo"] = [len(content) for content in values.contents]
    inodes["i_atime"] = [raw_crc(seed, content) for content in values.contents]
    inodes["i_links_count"] = 1
    inodes["i_blocks_lo"] = count * (BLOCK_SIZE // 512)
    inodes["i_flags"] = InodeFlag.EXTENTS | InodeFlag.EA_INODE
    inodes["i_version_lo"] = values.references
    inodes["i_extra_isize"] = EXTRA_ISIZE
    map_words = inodes["i_block"]
    map_words[:, 0], map_words[:, 1] = EXTENT_MAGIC | 1 << 16, EXTENTS_IN_INODE
    map_words[:, 4], map_words[:, 5] = count, values.first[:-1] + block
    crcs = row_crcs(inodes.view("<u4").reshape(len(values), -1), 0)
    numbers = np.arange(number, number + len(values), dtype=np.uint32)
    seal(inodes, crcs, numbers, advance(seed, INODE.itemsize + 8), [])
    return inodes


def value_blocks(values: Values, first: int, last: int) -> bytes:
    """The blocks of the values from ``first`` to ``last``: each value, then zeros."""
    return b"".join(content + bytes(-len(content) % BLOCK_SIZE) for content in values.contents[first:last])
