"""What a store stands on: the filesystem of the state directory where that reflinks, else an XFS of its own, else copies.

The decision is made once, under a lock, and written down in the store itself (``STATE/store/.castoff``), as the last thing.
So that file tells three things at once: that the store is set up, that it is mounted (below the mount point there is no such
file), and what it can do; and opening a store is reading it.

    STATE/store.xfs        the sparse XFS file, where there is one
    STATE/store/           the store: a directory, or where store.xfs is mounted
    STATE/store/.castoff   {"version": 1, "kind": "native" | "loop", "reflink": true | false, "device": N, "why": "..."}
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from castoff import timeline
from castoff.errors import CastoffError, Invalid, Unauthorized, Unsupported
from castoff.store.durable import replace_file
from castoff.store.settings import StoreSettings

__all__ = ["AREAS", "Backing", "Notice", "loop_file", "open_backing", "unmount_backing"]

Notice = Callable[[str], None]

AREAS = ("layers", "rootfs", "images/sha256", "machines", "kernels", "locks", "tmp")
"""The store's directories, relative to it."""

_VERSION = 1


class Backing(msgspec.Struct, frozen=True, kw_only=True):
    """What the store stands on."""

    version: int = _VERSION
    kind: Literal["native", "loop"]
    """The state directory's own filesystem, or an XFS in a loop-mounted file."""
    reflink: bool
    """Whether files share extents."""
    device: int
    """``st_dev`` of the store when that was tried; a store copied to another filesystem is tried again."""
    why: str = ""
    """Why there are no reflinks, for people; empty where there are."""


def open_backing(state: Path, settings: StoreSettings, notice: Notice) -> Backing:
    """Finds what the store of ``state`` stands on; makes or mounts it where need be.

    Raises:
        Unauthorized: The store belongs to another user.
        Unsupported: The settings ask for what this host cannot do.
    """
    root = state / "store"
    found = _read(root)
    if found is None or _stale(root, found, settings):
        try:
            state.mkdir(mode=0o711, parents=True, exist_ok=True)
            with _alone(state):
                found = _read(root)
                if found is None or _stale(root, found, settings):
                    found = _set_up(state, settings, notice)
        except PermissionError as error:
            raise _foreign(state) from error
        except OSError as error:  # a file, a path through one, /proc, a read-only filesystem
            raise Invalid(
                f"{state} cannot hold castoff's state: {error.strerror}", hint="name a directory with --state"
            ) from error
    if not os.access(root / "tmp", os.W_OK | os.X_OK):
        raise _foreign(state)
    return found


def loop_file(state: Path) -> Path:
    """Where the XFS file is, if there is one."""
    return state / "store.xfs"


def unmount_backing(state: Path) -> bool:
    """Unmounts a loop-mounted store; False where it is none, or is not mounted.

    Raises:
        Conflict: It is in use.
    """
    root = state / "store"
    if not loop_file(state).exists():
        return False
    with _alone(state):
        if not root.is_mount():
            return False
        from castoff.store import loop

        loop.unmount(root)
    return True


def _read(root: Path) -> Backing | None:
    try:
        data = (root / ".castoff").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise _foreign(root.parent) from error
    try:
        backing = msgspec.json.decode(data, type=Backing)
    except msgspec.MsgspecError as error:
        raise Invalid(f"{root / '.castoff'} is not what castoff wrote: {error}", hint="restore or remove it") from error
    if backing.version != _VERSION:
        raise Unsupported(
            f"the store at {root} is of version {backing.version}", hint="use the castoff that made it, or another --state"
        )
    return backing


def _stale(root: Path, found: Backing, settings: StoreSettings) -> bool:
    """Whether what was decided should be decided again: it moved, or it copies, is empty, and might do better by now."""
    if found.kind == "loop":
        return False  # its device number may be another after each mount
    if found.device != root.stat().st_dev:
        return True
    if found.reflink or settings.backing == "native":
        return False
    return not _cannot_loop(root.parent, settings)


def _holds(root: Path) -> bool:
    """Whether there is anything in the store that mounting over it would hide."""
    areas = [root / area for area in AREAS if area not in ("locks", "tmp")]
    return any(any(area.iterdir()) for area in areas if area.is_dir())


def _set_up(state: Path, settings: StoreSettings, notice: Notice) -> Backing:
    root = state / "store"
    root.mkdir(mode=0o711, exist_ok=True)
    if loop_file(state).exists():
        _mount(state)
        found = _read(root)
        return found if found is not None else _finish(root, "loop", reflink=True)
    from castoff.store.extents import probe_reflink

    reflink = settings.backing != "loop" and probe_reflink(root)
    if reflink or settings.backing == "native":
        return _finish(root, "native", reflink=reflink, why="" if reflink else "the settings say so (store.backing)")
    why = _cannot_loop(state, settings) or _make_loop(state, settings, notice)
    if not why:
        return _finish(root, "loop", reflink=True)
    if settings.backing == "loop":
        raise Unsupported(f"no XFS store at {root}: {why}", hint="set store.backing to auto, or see `castoff doctor`")
    notice(f"the filesystem of {root} has no reflinks and {why}: root filesystems will be copied")
    return _finish(root, "native", reflink=False, why=why)


def _cannot_loop(state: Path, settings: StoreSettings) -> str:
    from castoff.store import loop

    if _holds(state / "store"):
        return "the store holds files already"
    room = settings.loop_size or _room(state)
    return loop.missing() or (f"{room / 1e6:.0f} MB are too little for an XFS" if room < loop.SMALLEST else "")


def _room(state: Path) -> int:
    """Most of the free space. The file is sparse: this is what it may grow to, not what it takes."""
    status = os.statvfs(state)
    return status.f_bavail * status.f_frsize * 19 // 20


def _make_loop(state: Path, settings: StoreSettings, notice: Notice) -> str:
    """Makes and mounts the XFS file; why it cannot be had, or nothing."""
    from castoff.store import loop

    size = (settings.loop_size or _room(state)) & ~0xFFFFF
    path, root = loop_file(state), state / "store"
    (root / ".castoff").unlink(missing_ok=True)  # or it would be believed after an unmount
    with timeline.step("store.backing", size=size):
        try:
            loop.make_filesystem(path, size)
            loop.mount(path, root)
        except CastoffError as error:
            path.unlink(missing_ok=True)
            return error.what
    notice(f"made a store with reflinks: {path}, an XFS of up to {size / 1e9:.0f} GB that grows as it fills, mounted at {root}")
    return ""


def _mount(state: Path) -> None:
    from castoff.store import loop

    root, path = state / "store", loop_file(state)
    if root.is_mount():
        return
    if os.geteuid() != 0:
        raise Unauthorized(f"{path} is not mounted, and only root may mount it", hint="run once as root, or use another --state")
    with timeline.step("store.backing", mount=str(root)):
        loop.mount(path, root)


def _finish(root: Path, kind: Literal["native", "loop"], *, reflink: bool, why: str = "") -> Backing:
    for area in AREAS:
        directory = root
        for part in area.split("/"):
            directory /= part
            directory.mkdir(mode=0o711, exist_ok=True)
    link = root.parent / "machines"
    if not (link.is_symlink() or link.exists()):
        link.symlink_to("store/machines")
    backing = Backing(kind=kind, reflink=reflink, device=root.stat().st_dev, why=why)
    replace_file(root / ".castoff", msgspec.json.encode(backing))
    return backing


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Only one process sets up, mounts or unmounts at a time; this waits, for at most as long as mkfs and mount take."""
    descriptor = os.open(state / ".store.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _foreign(state: Path) -> CastoffError:
    try:
        whose = f"belongs to uid {state.stat().st_uid}"
    except OSError:
        whose = "is out of reach"
    return Unauthorized(f"the store in {state} {whose} and cannot be written by uid {os.geteuid()}", hint="use another --state")
