"""Applying an irregular layer entry by entry, as umoci's unpacker does, where :mod:`castoff.ext4.merge` cannot tell the result.

The order of entries counts in a layer that enters a directory through a symlink, puts entries below what it has as a file, or
hides what it has used before. Such layers are rare, so clarity comes before speed here: some microseconds an entry. The
result is the same kind of changes that a regular layer's records are.
"""

from __future__ import annotations

from array import array

import numpy as np

from castoff.errors import Invalid
from castoff.ext4.lexical import ROOT_KEY, path_key
from castoff.ext4.merge import Changes, Tree
from castoff.ext4.namehash import hash_names
from castoff.ext4.paths import Path, Paths
from castoff.ext4.records import Flag
from castoff.ext4.stack import Stack
from castoff.ext4.strings import Strings
from castoff.layers.names import show
from castoff.layers.toc import Kind

__all__ = ["replay"]

_MAX_SYMLINKS = 40
"""Symlinks followed on the way to one path, as in Linux (include/linux/namei.h, MAXSYMLINKS)."""


_WINDOW = 1 << 14
"""Rows taken from the columns at once."""

_REMEMBERED = 1 << 16
"""Names whose hashes are kept at once."""


class _NewDirectories:
    """Directories that no entry and no path of the layer names: what a symlink's text says and nobody has made."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.names: list[bytes] = []

    def add(self, name: bytes) -> int:
        """The item of a new directory."""
        self.names.append(name)
        return self.first + len(self.names) - 1


class _Resolved:
    """Where the layer's directories are, until something on the way may have gone."""

    def __init__(self, count: int) -> None:
        self._key = array("Q", bytes(8 * count))
        self._round = array("I", bytes(4 * count))
        self._now = 1

    def get(self, node: int) -> int:
        """A directory's key; 0 where it must be looked for."""
        return self._key[node] if self._round[node] == self._now else 0

    def put(self, node: int, key: int) -> None:
        """Says where a directory is."""
        self._key[node], self._round[node] = key, self._now

    def clear(self) -> None:
        """Something may have gone."""
        self._now += 1


def replay(stack: Stack, number: int, tree: Tree) -> Changes:
    """What layer ``number`` does to ``tree``; the stack learns of its directories.

    Raises:
        Invalid: An entry has no sense: below a file, or a hardlink to nothing.
    """
    replayed = _Replay(stack, number, tree)
    replayed.run()
    return replayed.changes()


class _Replay:
    def __init__(self, stack: Stack, number: int, tree: Tree) -> None:
        self.stack, self.tree = stack, tree
        self.layer = stack.layers[number]
        self.base = int(stack.base[number])
        self.paths = Paths()
        """But for those that only lower layers have."""
        self.resolved = _Resolved(len(self.layer) - self.layer.rows)
        self.taken = bytearray(len(self.layer) - self.layer.rows)
        """Directories of the layer whose own item names one that was made."""
        self.new = _NewDirectories(int(stack.base[-1]))
        self.hashes: dict[bytes, int] = {}

    def run(self) -> None:
        """Applies the entries in their order."""
        layer = self.layer
        for first in range(0, layer.rows, _WINDOW):
            here = slice(first, min(first + _WINDOW, layer.rows))
            self._learn(here)
            hashes = layer.major[here].astype(np.uint64) << np.uint64(32) | layer.minor[here]
            columns = zip(layer.kind[here].tolist(), layer.directory[here].tolist(), hashes.tolist(), strict=True)
            for row, (kind, directory, name_hash) in enumerate(columns, start=first):
                self._apply(row, kind, directory, name_hash)

    def _apply(self, row: int, kind: int, node: int, name_hash: int) -> None:
        """Applies one entry."""
        name = self.layer.names[row]
        if kind == Kind.OPAQUE:
            self._hide(self._enter(node, create=False, row=row))
        elif kind == Kind.WHITEOUT:
            self._whiteout(self._enter(node, create=False, row=row), name, name_hash)
        elif not name:
            root = self._existing(ROOT_KEY)
            self.paths.put(ROOT_KEY, Path(ROOT_KEY, root.item, self.base + row))
        else:
            directory = self._enter(node, create=True, row=row)
            assert directory is not None
            self._put(row, kind, directory, name, path_key(directory, name_hash))

    def changes(self) -> Changes:
        """The outcome; gives the layer's items their place in the stack."""
        self.stack.add_directories(self.new.names)
        paths = self.paths.columns()
        self.paths = Paths()  # of a million of them 60 MB, which what follows takes as well
        items, inodes = paths.item, paths.inode
        slots = self.stack.add_slots(paths.parent)
        mine = items >= self.base
        self.stack.slot[items[mine]] = slots[mine]
        exists = inodes >= 0
        directory = exists & (self.stack.kind[inodes] == Kind.DIRECTORY)
        flags = np.where(exists, Flag.EXISTS | Flag.EXPLICIT, 0).astype(np.uint8)
        flags[directory] |= Flag.DIRECTORY
        flags[~directory | paths.fresh] |= Flag.CLEAR
        inodes[~exists] = 0
        return Changes(paths.key, items.astype(np.uint32), inodes.astype(np.uint32), flags)

    def _learn(self, here: slice) -> None:
        """Hashes at once the names that these rows may lead through; what symlinks lead to is hashed when it is met."""
        layer = self.layer
        names = set[bytes]()
        nodes = np.unique(layer.directory[here])
        while nodes.any() and len(names) < _REMEMBERED:
            names.update(layer.names[layer.rows + node] for node in nodes.tolist())
            nodes = np.unique(layer.directory[layer.rows + nodes])
        first, end = np.searchsorted(layer.link_item, (here.start, here.stop)).tolist()
        for link in range(first, end):
            names.update(layer.link_path[link].split(b"/"))
        self._remember([name for name in names if 0 < len(name) <= 255 and name not in self.hashes])

    def _remember(self, names: list[bytes]) -> None:
        if len(self.hashes) + len(names) > _REMEMBERED:
            self.hashes.clear()
        major, minor = hash_names(Strings.from_list(names))
        hashes = major.astype(np.uint64) << np.uint64(32) | minor
        self.hashes.update(zip(names, hashes.tolist(), strict=True))

    def _kind(self, path: Path) -> int:
        return int(self.stack.kind[path.inode]) if path.inode < self.new.first else int(Kind.DIRECTORY)

    def _find(self, directory: int, name: bytes, key: int) -> Path | None:
        """What has a path now."""
        path = self.paths.get(key)
        if path is None:
            if self.paths.is_fresh(directory):
                return None
            position = self.tree.locate(key)
            if position < 0:
                return None
            item = int(self.tree.item[position])
            path = Path(self._parent(item), item, int(self.tree.inode[position]))
        if path.parent != directory or self._name(path.item) != name:
            raise Invalid(f"the name {show(name)} was made to collide with another")
        return path if path.inode >= 0 else None

    def _name(self, item: int) -> bytes:
        return self.stack.names[item] if item < self.new.first else self.new.names[item - self.new.first]

    def _parent(self, item: int) -> int:
        return int(self.stack.slot_key[self.stack.slot[item]])

    def _existing(self, key: int) -> Path:
        """A path that is known to exist."""
        path = self.paths.get(key)
        if path is not None:
            return path
        position = self.tree.locate(key)
        item = int(self.tree.item[position])
        parent = ROOT_KEY if key == ROOT_KEY else self._parent(item)
        return Path(parent, item, int(self.tree.inode[position]))

    def _touch(self, key: int) -> None:
        """Notes that the layer uses a directory: whiteouts of the same layer spare it from now on."""
        way = list[tuple[int, Path]]()
        while key not in self.paths:
            path = self._existing(key)
            way.append((key, path))
            if key == ROOT_KEY:
                break
            key = path.parent
        for below, path in reversed(way):
            self.paths.put(below, path)

    def _set(self, key: int, path: Path) -> None:
        self._touch(path.parent)
        self.paths.put(key, path)

    def _put(self, row: int, kind: int, directory: int, name: bytes, key: int) -> None:
        """An entry that makes something."""
        old = self._find(directory, name, key)
        item = inode = self.base + row
        if old is not None and kind == Kind.DIRECTORY == self._kind(old):
            self._set(key, Path(directory, old.item, inode))
            return
        if old is not None:
            self._remove(key, old)
        if kind == Kind.HARDLINK:
            inode = self._link_target(row)
        self._set(key, Path(directory, item, inode))
        if kind == Kind.DIRECTORY:
            self.paths.refresh(key)

    def _remove(self, key: int, path: Path) -> None:
        """Removes a path and all below it."""
        if self._kind(path) in (Kind.DIRECTORY, Kind.SYMLINK):
            self.resolved.clear()
        self.paths.forget_below(key)
        self._set(key, Path(path.parent, path.item, -1))

    def _whiteout(self, directory: int | None, name: bytes, name_hash: int) -> None:
        if directory is None:
            return
        key = path_key(directory, name_hash)
        path = self._find(directory, name, key)
        if path is None:
            return
        if key not in self.paths:
            self._remove(key, path)
        elif self._kind(path) == Kind.DIRECTORY:
            self._hide(key)

    def _hide(self, directory: int | None) -> None:
        """Takes from a directory, at any depth, what the lower layers have in it and this one has not used."""
        if directory is None:
            return
        self._touch(directory)
        self.resolved.clear()
        below = [directory]
        while below:
            key = below.pop()
            self.paths.refresh(key)
            for child in self.paths.children(key):
                path = self.paths.get(child)
                if path is not None and path.inode >= 0 and self._kind(path) == Kind.DIRECTORY:
                    below.append(child)

    def _link_target(self, row: int) -> int:
        """The inode that a hardlink names."""
        target = self.layer.link_path[int(self.layer.link_item.searchsorted(row))]
        parts = target.split(b"/")
        place, missing = self._walk(parts[:-1], row)
        path = None
        if not missing and parts[-1]:
            key = path_key(place[-1], self._hash(parts[-1]) if len(parts[-1]) <= 255 else 0)
            path = self._find(place[-1], parts[-1], key)
        if path is None or self._kind(path) == Kind.DIRECTORY:
            raise Invalid(f"{self.layer.path(row)} is a hardlink to {show(target)}, which is no file there")
        return path.inode

    def _enter(self, node: int, *, create: bool, row: int) -> int | None:
        """The directory that the layer calls ``node``; None where it is missing and not to be created."""
        known = self.resolved.get(node)
        if known:
            return known
        nodes = [node]
        while nodes[-1]:
            nodes.append(int(self.layer.directory[self.layer.rows + nodes[-1]]))
        nodes = nodes[-2::-1]
        place, missing = self._walk([self.layer.names[self.layer.rows + each] for each in nodes], row)
        if missing and not create:
            return None
        tail = nodes[len(nodes) - len(missing) :]
        for depth, name in enumerate(missing):
            own = tail[depth] if len(tail) == len(missing) else None
            place.append(self._make(place[-1], name, own, row))
        self.resolved.put(node, place[-1])
        return place[-1]

    def _make(self, parent: int, name: bytes, node: int | None, row: int) -> int:
        """Makes a directory that only its children imply."""
        name_hash = self._hash(name)
        key = path_key(parent, name_hash)
        if self._find(parent, name, key) is not None:
            raise Invalid(f"{self.layer.path(row)} lies below {show(name)}, which is a file")
        item = -1 if node is None else self.layer.rows + node
        if node is None or self.taken[node] or self.layer.names[item] != name:
            place = self.new.add(name)
        else:
            self.taken[node] = 1
            place = self.base + item
        self._set(key, Path(parent, place, place))
        self.paths.refresh(key)
        return key

    def _hash(self, name: bytes) -> int:
        if name not in self.hashes:
            self._remember([name])
        return self.hashes[name]

    def _walk(self, parts: list[bytes], row: int) -> tuple[list[int], list[bytes]]:
        """Follows a path inside the root: the directories that exist on it, and the names after them that do not.

        A name that is a file counts as missing: making it fails then. ``..`` never leads out of the root.
        """
        place, missing, followed = [ROOT_KEY], list[bytes](), 0
        todo = parts[::-1]
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if missing:
                    missing.pop()
                elif len(place) > 1:
                    place.pop()
                continue
            path = None
            if not missing:
                if len(name) > 255:
                    raise Invalid(f"{self.layer.path(row)} leads through a name of over 255 bytes")
                key = path_key(place[-1], self._hash(name))
                path = self._find(place[-1], name, key)
            if path is not None and self._kind(path) == Kind.DIRECTORY:
                place.append(key)
            elif path is not None and self._kind(path) == Kind.SYMLINK:
                followed += 1
                if followed > _MAX_SYMLINKS:
                    raise Invalid(f"{self.layer.path(row)} leads through more than {_MAX_SYMLINKS} symlinks")
                target = self._target(path.inode)
                if target.startswith(b"/"):
                    place = [ROOT_KEY]
                todo += target.split(b"/")[::-1]
            else:
                missing.append(name)
        return place, missing

    def _target(self, inode: int) -> bytes:
        layer = self.stack.layer_of(inode)
        return self.stack.layers[layer].inodes.inline[inode - int(self.stack.base[layer])]
