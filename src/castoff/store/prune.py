"""Makes room: what was used least recently goes first, and never what a machine stands on or a living process works with.

A rootfs goes before its layers can: while it shares a layer's blocks, removing the layer would free next to nothing. Each
removal asks twice. The flock on the thing's directory says whether a process has it (castoff.store.locks); the records of
machines, read again while that lock is held, whether a machine has it. A machine's record is written while its creator
still holds the rootfs, so there is no moment between the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from castoff.errors import Conflict, Invalid, NotFound
from castoff.image.digest import Digest
from castoff.store.builds import sweep
from castoff.store.durable import remove
from castoff.store.layers import layer_directories
from castoff.store.locks import exclusive
from castoff.store.machines import machine_rootfs
from castoff.store.rootfs import RootfsName, read_record, rootfs_names
from castoff.store.usage import shares_of

__all__ = ["Pruned", "prune", "remove_layer", "remove_rootfs", "users"]


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
    evicted: int = 0
    """Bytes of chunks that went out of layers that stay (castoff.store.evict)."""


class _Candidates:
    """What may go, as it was when the prune began: things that came since are new, and stay."""

    def __init__(self, root: Path) -> None:
        machines = [record for _, record in machine_rootfs(root / "machines")]
        used = {f"rootfs/{record.rootfs}" for record in machines} | {
            f"layers/{layer.removeprefix('sha256:')}" for record in machines for layer in record.layers
        }
        self._layers = {f"rootfs/{name}": _layers_of(root / "rootfs" / str(name)) for name in rootfs_names(root)}
        self._needed = Counter(layer for layers in self._layers.values() for layer in layers)
        names = [*self._layers, *(f"layers/{path.name}" for path in layer_directories(root))]
        self._last_used = {
            name: used_at for name in names if name not in used and (used_at := _last_used(root / name)) is not None
        }

    def next(self) -> str | None:
        """Takes the least recently used thing that nothing needs, as ``area/name``; None when there is none."""
        free = [(when, name) for name, when in self._last_used.items() if not self._needed[name]]
        if not free:
            return None
        name = min(free)[1]
        del self._last_used[name]
        return name

    def gone(self, name: str) -> None:
        """It needs nothing any more."""
        self._needed.subtract(self._layers.get(name, ()))


def _layers_of(path: Path) -> frozenset[str]:
    """The layers that the rootfs in ``path`` shares blocks with; none where it is gone."""
    try:
        record = read_record(path)
    except Invalid:
        if path.exists():
            raise
        return frozenset()  # by another process, just now
    return frozenset(f"layers/{layer.removeprefix('sha256:')}" for layer in record.layers)


def _last_used(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def prune(root: Path, *, limit: int, dry_run: bool = False) -> Pruned:
    """Removes what nobody uses until layers and root filesystems take at most ``limit`` bytes. Blocks.

    Args:
        root: The store's directory.
        limit: Bytes; 0: everything that nobody uses goes.
        dry_run: Only say what a prune to 0 bytes would remove.
    """
    debris = 0 if dry_run else len(sweep(root))
    shares = shares_of(root, ("layers", "rootfs"))
    before = after = shares.count()[0]
    candidates = _Candidates(root)
    removed: list[str] = []
    while (after > limit or limit == 0) and (name := candidates.next()) is not None:
        if dry_run or _remove_unused(root, name):
            candidates.gone(name)
            removed.append(name)
            if limit and not dry_run:
                shares.remove(name)
                after = shares.count()[0]
    evicted = _evict(root, after - limit) if limit and after > limit and not dry_run else 0
    if evicted or (limit == 0 and not dry_run):
        after = shares_of(root, ("layers", "rootfs")).count()[0]
    return Pruned(
        rootfs=tuple(name.partition("/")[2] for name in removed if name.startswith("rootfs/")),
        layers=tuple(f"sha256:{name.partition('/')[2]}" for name in removed if name.startswith("layers/")),
        debris=debris,
        before=before,
        after=after,
        evicted=evicted,
    )


def _evict(root: Path, needed: int) -> int:
    """Makes holes in layers that stay, the least recently used first."""
    from castoff.store.evict import evict_chunks  # numpy; most prunes need it not

    freed = 0
    for path in sorted(layer_directories(root), key=lambda path: _last_used(path) or 0.0):
        if freed < needed:
            freed += evict_chunks(path, needed=needed - freed)
    return freed


def remove_rootfs(root: Path, name: RootfsName) -> None:
    """Removes one rootfs; its layers stay.

    Raises:
        NotFound: It is not here.
        Conflict: A machine stands on it, or a process works with it.
    """
    path = root / "rootfs" / str(name)
    if not path.exists():
        raise NotFound(f"no rootfs {name} is here", hint="see `castoff rootfs list`")
    machines = list(users(root, f"rootfs/{name}"))
    if machines:
        raise Conflict(f"rootfs {name} is in use by {', '.join(machines[:5])}", hint="destroy these machines first")
    if not _remove_unused(root, f"rootfs/{name}"):
        raise Conflict(f"rootfs {name} is in use by a process", hint="try again when it is done")


def remove_layer(root: Path, diff_id: Digest) -> None:
    """Removes one layer; root filesystems that share its blocks keep them.

    Raises:
        Conflict: A machine or a process uses it.
    """
    name = f"layers/{diff_id.hex}"
    machines = list(users(root, name))
    if machines:
        raise Conflict(f"layer {diff_id} is in use by {', '.join(machines[:5])}", hint="destroy these machines first")
    if not _remove_unused(root, name):
        raise Conflict(f"layer {diff_id} is in use by a process", hint="try again when it is done")


def _remove_unused(root: Path, name: str) -> bool:
    """Removes ``area/name`` unless somebody has it; whether it is gone."""
    path = root / name
    with exclusive(path) as mine:
        if not mine:
            return not path.exists()
        if any(users(root, name)):
            return False
        remove(path, graveyard=root / "tmp")
    return True


def users(root: Path, name: str) -> Iterator[str]:
    """The machines that stand on ``area/name``."""
    area, _, what = name.partition("/")
    for directory, record in machine_rootfs(root / "machines"):
        if (area == "rootfs" and record.rootfs == what) or (area == "layers" and f"sha256:{what}" in record.layers):
            yield directory.name
