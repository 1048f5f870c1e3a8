"""How this host serves a rootfs that is not all here: what the machine asks for, the settings allow and the kernel can.

``fanotify`` gives a machine a plain file of its own, so it goes with reflink clones; ``fuse`` a read-only one, an overlay's
base. Each is tried, not looked up.
"""

from __future__ import annotations

from castoff.disk.clone import CloneKind
from castoff.errors import Unsupported
from castoff.hydrate.record import FrontKind
from castoff.rootfs.settings import RootfsSettings
from castoff.store.store import Store

__all__ = ["choose_front", "fanotify_lacks", "fuse_lacks", "wanted_front"]

_CLONES = {FrontKind.FANOTIFY: CloneKind.REFLINK, FrontKind.FUSE: CloneKind.OVERLAY}


def choose_front(store: Store, *, clone: CloneKind | None, wanted: FrontKind | None) -> FrontKind:
    """The front for a machine whose clone is of kind ``clone`` (None: any), ``wanted`` by the settings (None: the best).

    Raises:
        Unsupported: There is none.
    """
    problems = []
    for front, kind in _CLONES.items():
        if clone not in (None, kind) or wanted not in (None, front):
            continue
        lack = fanotify_lacks(store) if front is FrontKind.FANOTIFY else fuse_lacks(store)
        if not lack:
            return front
        problems.append(f"{front.value}: {lack}")
    why = "; ".join(problems) or f"{wanted.value if wanted else 'nothing'} does not go with a {clone or 'reflink'} clone"
    raise Unsupported(f"no rootfs can be served here before it is whole: {why}", hint="see `castoff doctor`, or use --lazy never")


def wanted_front(settings: RootfsSettings) -> FrontKind | None:
    """The one that the settings name; None: the best."""
    return None if settings.front == "auto" else FrontKind(settings.front)


def fanotify_lacks(store: Store) -> str:
    """What keeps a clone of its own from being served; empty where nothing does."""
    from castoff.hydrate.fanotify import missing

    return missing(store.machines) if store.reflink else "the store has no reflinks"


def fuse_lacks(store: Store) -> str:
    """What keeps a read-only base from being served; empty where nothing does."""
    from castoff.hydrate.fuse_mount import missing

    return missing(store.root / "tmp")
