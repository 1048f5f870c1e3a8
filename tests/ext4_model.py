"""What applying layers means, as plainly as it can be said: a tree of Python objects, changed entry by entry.

It follows umoci's unpacker (oci/layer/tar_extract.go, ``UnpackEntry``), which integration tests compare it with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from castoff.layers.toc import Kind
from ext4_toc import Row

__all__ = ["Contradiction", "Node", "apply", "listing", "new_root"]

Path = tuple[bytes, ...]


class Contradiction(Exception):
    """An entry that no filesystem can have."""


@dataclass(eq=False)
class Node:
    """An inode."""

    kind: Kind
    row: Row
    children: dict[bytes, Node] = field(default_factory=dict)


def _implied() -> Node:
    return Node(Kind.DIRECTORY, Row(b"", Kind.DIRECTORY, mode=0o755))


def new_root() -> Node:
    """An empty filesystem."""
    return _implied()


def _get(root: Node, path: Path) -> Node | None:
    node: Node | None = root
    for name in path:
        if node is None or node.kind != Kind.DIRECTORY:
            return None
        node = node.children.get(name)
    return node


def _join(root: Node, unsafe: bytes) -> Path:
    """github.com/cyphar/filepath-securejoin: symlinks are followed inside the root, what is missing is taken as it is."""
    current: Path = ()
    rest = unsafe.split(b"/")
    followed = 0
    while rest:
        name = rest.pop(0)
        if name in (b"", b"."):
            continue
        if name == b"..":
            current = current[:-1]
            continue
        node = _get(root, (*current, name))
        if node is None or node.kind != Kind.SYMLINK:
            current = (*current, name)
            continue
        followed += 1
        if followed > 40:
            raise Contradiction("symlinks")
        target = node.row.target
        if target.startswith(b"/"):
            current = ()
        rest = target.split(b"/") + rest
    return current


def apply(root: Node, rows: Sequence[Row]) -> None:
    """Applies a layer."""
    upper: set[Path] = set()
    for row in rows:
        _apply(root, row, upper)


def _apply(root: Node, row: Row, upper: set[Path]) -> None:
    parent, _, name = row.path.rpartition(b"/")
    if row.kind == Kind.OPAQUE:
        path = _join(root, row.path)
        if _get(root, path) is not None:
            _purge(root, path, upper, keep=True)
        return
    if not row.path:
        root.row = row
        return
    directory = _join(root, parent)
    path = (*directory, name)
    if row.kind == Kind.WHITEOUT:
        if _get(root, path) is not None:
            _purge(root, path, upper, keep=False)
        return
    old = _get(root, path)
    _make_directories(root, directory)
    holder = _get(root, directory)
    assert holder is not None
    if old is not None and not (old.kind == Kind.DIRECTORY and row.kind == Kind.DIRECTORY):
        del holder.children[name]
        old = None
    if row.kind == Kind.HARDLINK:
        link_parent, _, link_name = row.target.rpartition(b"/")
        target = _get(root, (*_join(root, link_parent), link_name)) if link_name else None
        if target is None or target.kind == Kind.DIRECTORY:
            raise Contradiction("hardlink")
        holder.children[name] = target
    elif old is not None:
        old.row = row
    else:
        holder.children[name] = Node(row.kind, row)
    upper.update(path[:length] for length in range(len(path) + 1))


def _make_directories(root: Node, path: Path) -> None:
    node = root
    for name in path:
        child = node.children.get(name)
        if child is None:
            child = node.children[name] = _implied()
        if child.kind != Kind.DIRECTORY:
            raise Contradiction("below a file")
        node = child


def _purge(root: Node, path: Path, upper: set[Path], *, keep: bool) -> None:
    """Removes what the layer has not touched at and below a path."""
    node = _get(root, path)
    assert node is not None
    if path not in upper and not keep:
        holder = _get(root, path[:-1])
        assert holder is not None
        del holder.children[path[-1]]
        return
    if node.kind == Kind.DIRECTORY:
        for name in list(node.children):
            _purge(root, (*path, name), upper, keep=False)


def listing(root: Node) -> Iterator[tuple[bytes, Node]]:
    """All paths and their inodes."""
    todo = [(b"", root)]
    while todo:
        path, node = todo.pop()
        yield path, node
        todo += [(path + b"/" + name if path else name, child) for name, child in node.children.items()]
