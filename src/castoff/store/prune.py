"""Makes room: what was used least recently goes first, and never what a machine stands on or a living process works with.

A rootfs goes before its layers can: while it shares a layer's blocks, removing the layer would free next to nothing. Each
removal asks twice. The flock on the thing's directory says whether a process has it (castoff.store.locks); the records of
machines, read again while that lock is held, whether a machine has it. A machine's record is written while its creator
still holds the rootfs, so there is no moment between the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from castoff.errors import Conflict, NotFound
from castoff.image.digest import Digest
from castoff.store.builds import sweep
from castoff.store.durable import remove
from castoff.store.locks import exclusive
from castoff.store.machines import machine_rootfs
from castoff.store.rootfs import RootfsName
from castoff.store.usage import store_usage

__all__ = ["Pruned", "prune", "remove_layer", "remove_rootfs"]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed (or would be, on a dry run), the least recently used first."""

    rootfs: tuple[str, ...]
    layers: tuple[str, ...]
    """diffIDs."""
    debris: int
    """Things that dead builders had left."""
    before: int
    """Bytes on disk of layers and root filesystems, before and after. After a dry run they are the same."""
    after: int


@dataclass(slots=True)
class _Candidates:
    """What may go, and whom it still serves."""

    root: Path
    removed: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)

    def next(self) -> str | None:
        """The least recently used thing that nothing needs, as ``area/name``; None when there is none."""
        usage = store_usage(self.root, free=0, limit=0)
        gone = set(self.removed)
        left = [one for one in usage.rootfs if f"rootfs/{one.name}" not in gone]
        found = [(one.last_used, f"rootfs/{one.name}") for one in left if not one.machines]
        needed = {diff_id for one in left for diff_id in one.layers}
        found += [
            (layer.last_used, f"layers/{layer.diff_id.removeprefix('sha256:')}")
            for layer in usage.layers
            if layer.diff_id not in needed and not layer.machines
        ]
        return min(((when, name) for when, name in found if name not in gone | self.kept), default=(0, None))[1]


def prune(root: Path, *, limit: int, dry_run: bool = False) -> Pruned:
    """Removes what nobody uses until layers and root filesystems take at most ``limit`` bytes. Blocks.

    Args:
        root: The store's directory.
        limit: Bytes; 0: everything that nobody uses goes.
        dry_run: Only say what a prune to 0 bytes would remove.
    """
    debris = 0 if dry_run else len(sweep(root))
    before = after = store_usage(root, free=0, limit=0).cached
    candidates = _Candidates(root)
    while after > limit or limit == 0:
        name = candidates.next()
        if name is None:
            break
        if dry_run or _remove_unused(root, name):
            candidates.removed.append(name)
            after = before if dry_run else store_usage(root, free=0, limit=0).cached
        else:
            candidates.kept.add(name)
    removed = candidates.removed
    return Pruned(
        rootfs=tuple(name.partition("/")[2] for name in removed if name.startswith("rootfs/")),
        layers=tuple(f"sha256:{name.partition('/')[2]}" for name in removed if name.startswith("layers/")),
        debris=debris,
        before=before,
        after=after,
    )


def remove_rootfs(root: Path, name: RootfsName) -> None:
    """Removes one rootfs; its layers stay.

    Raises:
        NotFound: It is not here.
        Conflict: A machine stands on it, or a process works with it.
    """
    path = root / "rootfs" / str(name)
    if not path.exists():
        raise NotFound(f"no rootfs {name} is here", hint="see `castoff rootfs list`")
    users = list(_users(root, f"rootfs/{name}"))
    if users:
        raise Conflict(f"rootfs {name} is in use by {', '.join(users[:5])}", hint="destroy these machines first")
    if not _remove_unused(root, f"rootfs/{name}"):
        raise Conflict(f"rootfs {name} is in use by a process", hint="try again when it is done")


def remove_layer(root: Path, diff_id: Digest) -> None:
    """Removes one layer; root filesystems that share its blocks keep them.

    Raises:
        Conflict: A machine or a process uses it.
    """
    name = f"layers/{diff_id.hex}"
    users = list(_users(root, name))
    if users:
        raise Conflict(f"layer {diff_id} is in use by {', '.join(users[:5])}", hint="destroy these machines first")
    if not _remove_unused(root, name):
        raise Conflict(f"layer {diff_id} is in use by a process", hint="try again when it is done")


def _remove_unused(root: Path, name: str) -> bool:
    """Removes ``area/name`` unless somebody has it; whether it is gone."""
    path = root / name
    with exclusive(path) as mine:
        if not mine:
            return not path.exists()
        if any(_users(root, name)):
            return False
        remove(path, graveyard=root / "tmp")
    return True


def _users(root: Path, name: str) -> Iterator[str]:
    """The machines that stand on ``area/name``."""
    area, _, what = name.partition("/")
    for directory, record in machine_rootfs(root / "machines"):
        if (area == "rootfs" and record.rootfs == what) or (area == "layers" and f"sha256:{what}" in record.layers):
            yield directory.name
