"""Checking a whole image that castoff composed and nobody has mounted since.

Every structure is read and every checksum made again; what the inodes use is counted and compared with bitmaps, descriptors and
superblock. It is stricter than e2fsck: what nobody uses must be zero, so that every byte of metadata is accounted for.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from castoff import timeline
from castoff.ext4.check.attributes import Seen, read_attributes
from castoff.ext4.check.directories import read_directory
from castoff.ext4.check.extents import Mapping, map_blocks
from castoff.ext4.check.groups import check_groups, check_journal, check_superblock
from castoff.ext4.check.image import BLOCK, EA_INODE, Image, Inode, Problem

__all__ = ["check"]

_EXTENTS, _INDEX = 0x80000, 0x1000
_FIFO, _CHARACTER, _DIRECTORY, _BLOCK, _REGULAR, _SYMLINK = 0x1000, 0x2000, 0x4000, 0x6000, 0x8000, 0xA000
_FILE_TYPES = {_REGULAR: 1, _DIRECTORY: 2, _CHARACTER: 3, _BLOCK: 4, _FIFO: 5, _SYMLINK: 7}
_ROOT, _JOURNAL, _FIRST = 2, 8, 11
_MAX_PROBLEMS = 100


def check(path: Path) -> list[Problem]:
    """What is wrong with an image, nothing if it is sound; at most about a hundred problems.

    Raises:
        Unavailable: It cannot be read.
        Invalid: It is no ext4 that castoff makes.
    """
    with timeline.step("ext4.check", path=str(path)), Image.open(path) as image:
        checker = _Checker(image)
        checker.run()
        return image.problems


@dataclass(slots=True)
class _Checker:
    image: Image
    used: NDArray[np.bool_] = field(init=False)
    attributes: Seen = field(default_factory=Seen)
    parents: dict[int, int] = field(default_factory=dict)
    links: dict[int, int] = field(default_factory=dict)
    entries: dict[int, array[int]] = field(default_factory=dict)
    """For each directory the inode and the file type of each of its entries, in turn."""
    lost_and_found: int = 0
    inodes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Kind and link count of all inodes that a name leads to."""

    def run(self) -> None:
        """Checks everything, the tree from its root on."""
        image = self.image
        self.used = np.zeros(image.blocks, dtype=bool)
        check_superblock(image)
        if not self._claim_front():
            return
        self._journal()
        self.links[_ROOT] = 1
        todo = [_ROOT]
        while todo and len(image.problems) < _MAX_PROBLEMS:
            todo += self._inode(todo.pop())
        self._links()
        self._attributes()
        self._unused_inodes()
        self._groups()

    def _claim(self, where: str, start: int, length: int) -> None:
        if self.used[start : start + length].any():
            self.image.report(where, f"blocks {start} to {start + length - 1} belong to something else, too")
        self.used[start : start + length] = True

    def _claim_front(self) -> bool:
        """The superblock, descriptors, bitmaps and inode tables; False where nothing else can be read."""
        image = self.image
        table = image.inodes_per_group // 16
        self._claim("descriptors", 0, 1 + -(-image.groups * 64 // BLOCK))
        for group in range(image.groups):
            for name, length in (("bg_block_bitmap", 1), ("bg_inode_bitmap", 1), ("bg_inode_table", table)):
                start = image.wide(group, name)
                if not 0 < start <= image.blocks - length:
                    image.report(f"group {group}", f"{name} is out of range")
                    return False
                self._claim(f"group {group}", start, length)
        return True

    def _journal(self) -> None:
        inode = self.image.inode(_JOURNAL)
        mapping = map_blocks(self.image, inode)
        self._claim_mapping(inode, mapping)
        if inode.links != 1 or inode.mode != _REGULAR | 0o600 or inode.flags != _EXTENTS or not mapping.extents:
            self.image.report("journal", "its inode is wrong")
            return
        check_journal(self.image, mapping.extents[0].start, inode.size // BLOCK, inode.block)

    def _claim_mapping(self, inode: Inode, mapping: Mapping) -> None:
        where = f"inode {inode.number}"
        for extent in mapping.extents:
            self._claim(where, extent.start, extent.length)
        for block in mapping.tree:
            self._claim(where, block, 1)
        blocks = sum(extent.length for extent in mapping.extents) + len(mapping.tree) + (inode.attribute_block != 0)
        blocks += self.attributes.charged.get(inode.number, 0)
        if inode.sectors != blocks * 8:
            self.image.report(where, f"it says {inode.sectors} sectors and has {blocks * 8}")
        if mapping.extents and inode.kind != _DIRECTORY:
            last = mapping.extents[-1]
            if last.logical + last.length > -(-inode.size // BLOCK):
                self.image.report(where, "it has blocks past its end")

    def _inode(self, number: int) -> list[int]:
        """Checks an inode; the directories that it names for the first time."""
        image = self.image
        inode = image.inode(number)
        self.inodes[number] = inode.kind, inode.links
        where = f"inode {number}"
        if inode.kind not in _FILE_TYPES or any(inode.raw[100:104]) or any(inode.raw[20:24]) or any(inode.raw[36:40]):
            image.report(where, "it has a mode, generation, version or time of deletion that nothing has")
            return []
        if any(inode.raw[112:116]) or any(inode.raw[126:128]) or any(inode.raw[152:160]) or inode.flags & ~(_EXTENTS | _INDEX):
            image.report(where, "it has something in a field that is not used")
        if any(nanoseconds > 999_999_999 for _, nanoseconds in inode.times):
            image.report(where, "it has a time that is none")
        read_attributes(image, inode, self.attributes)
        mapping = self._mapping(inode)
        self._claim_mapping(inode, mapping)
        if inode.kind != _DIRECTORY:
            return []
        return self._directory(inode, mapping)

    def _mapping(self, inode: Inode) -> Mapping:
        """An inode's blocks, where it is of a kind that has some."""
        where = f"inode {inode.number}"
        fast = inode.kind == _SYMLINK and inode.size < 60
        if inode.kind in (_REGULAR, _DIRECTORY) or (inode.kind == _SYMLINK and not fast):
            if not inode.flags & _EXTENTS:
                self.image.report(where, "it has blocks and no extents")
                return Mapping()
            mapping = map_blocks(self.image, inode)
            if inode.kind == _SYMLINK and not self._is_long_symlink(inode, mapping):
                self.image.report(where, "its symlink's block is wrong")
            return mapping
        used = inode.size if fast else 8
        if inode.flags or any(inode.block[used:]) or (fast and (inode.size == 0 or 0 in inode.block[:used])):
            self.image.report(where, "its i_block is wrong")
        if not fast and (inode.size or (inode.kind == _FIFO and any(inode.block))):
            self.image.report(where, "it has a size and is no file")
        return Mapping()

    def _is_long_symlink(self, inode: Inode, mapping: Mapping) -> bool:
        if len(mapping.extents) != 1 or mapping.extents[0].length != 1 or inode.size >= BLOCK:
            return False
        block = bytes(self.image.block(mapping.extents[0].start))
        return 0 not in block[: inode.size] and not any(block[inode.size :])

    def _directory(self, inode: Inode, mapping: Mapping) -> list[int]:
        image = self.image
        where = f"directory {inode.number}"
        entries = read_directory(image, inode, mapping)
        self.entries[inode.number] = array("I", [value for entry in entries for value in (entry.inode, entry.file_type)])
        names = [entry.name for entry in entries]
        if inode.number == _ROOT:
            self.lost_and_found = next((entry.inode for entry in entries if entry.name == b"lost+found"), 0)
        if len(set(names)) != len(names):
            image.report(where, "a name stands in it twice")
        parent = self.parents.get(inode.number, _ROOT)
        if [entry.inode for entry in entries[:2]] != [inode.number, parent]:
            image.report(where, ". or .. name another directory")
        found = []
        last = int(image.superblock["s_inodes_count"])
        for entry in entries[2:]:
            if not _FIRST <= entry.inode <= last:
                image.report(where, f"{entry.name!r} names inode {entry.inode}, which cannot be")
                continue
            self.links[entry.inode] = self.links.get(entry.inode, 0) + 1
            if entry.inode not in self.parents:
                self.parents[entry.inode] = inode.number
                found.append(entry.inode)
        return found

    def _links(self) -> None:
        """Link counts, and the file types that entries promise."""
        nothing = (0, 0)
        for directory, entries in self.entries.items():
            for number, file_type in zip(entries[::2], entries[1::2], strict=True):
                kind, _ = self.inodes.get(number, nothing)
                if kind and _FILE_TYPES.get(kind) != file_type:
                    self.image.report(f"directory {directory}", f"an entry has another file type than its inode {number}")
        for number, (kind, links) in self.inodes.items():
            expected = self.links.get(number, 0)
            if kind == _DIRECTORY:
                if expected != 1:
                    self.image.report(f"inode {number}", "it is a directory with several names")
                children = self.entries.get(number, array("I"))[4::2]
                expected = 2 + sum(self.inodes.get(child, nothing)[0] == _DIRECTORY for child in children)
                expected = 1 if expected > 65000 else expected
            if links != expected:
                self.image.report(f"inode {number}", f"it says {links} links and has {expected}")
        if self.inodes.get(self.lost_and_found, nothing)[0] != _DIRECTORY:
            self.image.report("directory 2", "there is no lost+found")

    def _attributes(self) -> None:
        """Blocks and values of attributes, and who says that he shares them."""
        for block, count in self.attributes.blocks.items():
            self._claim("attributes", block, 1)
            if int.from_bytes(self.image.block(block)[4:8], "little") != count:
                self.image.report(f"block {block}", f"{count} inodes share it, and it says otherwise")

        for number, count in self.attributes.references.items():
            if number in self.inodes:
                self.image.report(f"inode {number}", "it is an attribute's value, and has a name")
            if int.from_bytes(self.image.inode_bytes(number)[36:40], "little") != count:
                self.image.report(f"inode {number}", f"{count} attributes have its value, and it says otherwise")
        for inode, mapping in self.attributes.mappings.values():
            self._claim_mapping(inode, mapping)
        if bool(self.image.superblock["s_feature_incompat"] & EA_INODE) != bool(self.attributes.references):
            self.image.report("superblock", "its feature of attributes in inodes is wrong")

    def _unused_inodes(self) -> None:
        """What no name leads to must be empty: reserved inodes, and the rest of the last used block of a table."""
        image = self.image
        used = self.inodes.keys() | self.attributes.references.keys()
        last = max(used, default=_FIRST)
        for number in (1, 3, 4, 5, 6, 7, 9, 10):
            if any(image.inode_bytes(number)):
                image.report(f"inode {number}", "it is reserved, and not empty")
        tail = range(last + 1, min(-(-last // 16) * 16, int(image.superblock["s_inodes_count"])) + 1)
        holes = [number for number in range(_FIRST, last) if number not in used]
        for number in (*holes, *tail):
            if any(image.inode_bytes(number)):
                image.report(f"inode {number}", "no name leads to it, and it is not empty")

    def _groups(self) -> None:
        image = self.image
        inodes = np.zeros(image.groups * image.inodes_per_group, dtype=bool)
        inodes[: _FIRST - 1] = True
        inodes[np.array([*self.inodes, *self.attributes.references], dtype=np.int64) - 1] = True
        numbers = np.array([number for number, (kind, _) in self.inodes.items() if kind == _DIRECTORY], dtype=np.int64)
        directories = np.bincount((numbers - 1) // image.inodes_per_group, minlength=image.groups)
        check_groups(image, self.used, inodes, directories)
