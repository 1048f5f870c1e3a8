"""A converted layer takes the place of one that was still coming in: at one instant, under whoever uses the old one.

Both have the same diffID. Whoever has the old one's files open (a hydrator) keeps them, unlinked, until it is done; whoever
looks the layer up from here on finds the new one, which is whole. That is right only while both say the same of every
chunk: a machine whose clone is half filled goes on from either. An old one that says something else came from an artifact
that lied, or of another version of the segment's layout; it goes where nobody stands on it, and is kept where somebody does.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from castoff.errors import CastoffError, Conflict, Unsupported
from castoff.layers.index import LayerIndex, encode_index, read_index
from castoff.store.durable import fsync_path, publish, remove, replace_file
from castoff.store.locks import exclusive
from castoff.store.prune import users

__all__ = ["adopt_locations", "publish_or_replace", "publish_unless_there", "replace_layer"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _same_content(one: Path, other: Path) -> bool:
    """Whether two layers' directories have indexes that say the same of every chunk; False where one cannot be read."""
    try:
        first, second = read_index(one / "index"), read_index(other / "index")
    except CastoffError:
        return False
    return first.segment_size == second.segment_size and bool((first.digests == second.digests).all())


def publish_unless_there(temporary: Path, target: Path) -> None:
    """Gives a begun layer its name, unless there is one by now: that is as good, and this one goes."""
    try:
        publish(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        remove(temporary)


def publish_or_replace(root: Path, temporary: Path, target: Path) -> None:
    """Gives a whole layer its name, in the place of one that comes in if there is one.

    Raises:
        Conflict, Unsupported: As :func:`replace_layer`.
    """
    try:
        publish(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        replace_layer(root, temporary, target)


def replace_layer(root: Path, temporary: Path, target: Path) -> None:
    """Puts the whole layer in ``temporary`` in the place of the incomplete one at ``target``, durably; the old one goes.

    Args:
        root: The store's directory.
        temporary: Finished, and flushed.
        target: The incomplete layer.

    Raises:
        Conflict: The old one is needed by a machine or a process, and says other things of its chunks.
        Unsupported: The filesystem cannot exchange names.
    """
    if _same_content(temporary, target):
        _exchange(temporary, target)
    else:
        with exclusive(target) as unused:
            if not unused or any(users(root, f"layers/{target.name}")):
                raise Conflict(
                    f"layer sha256:{target.name} comes in from an artifact that says other things than its origin",
                    hint="destroy the machines that use it, and look at who signed it: castoff trust list",
                )
            _exchange(temporary, target)
    fsync_path(target.parent)
    remove(temporary)


def adopt_locations(directory: Path, index: LayerIndex) -> None:
    """Makes ``index`` the one of the incomplete layer in ``directory``: the latest artifact knows best where chunks are.

    Raises:
        Conflict: It says other things of the chunks than the index that is there.
    """
    data = b"".join(encode_index(index))
    try:
        if (directory / "index").read_bytes() == data:
            return
        here = read_index(directory / "index")
    except FileNotFoundError:
        return  # removed just now
    if here.segment_size != index.segment_size or not (here.digests == index.digests).all():
        raise Conflict(
            f"layer {index.diff_id} comes in from an artifact already, and this one says other things of it",
            hint="run `castoff store prune` when no machine uses it, and look at who signed them: castoff trust list",
        )
    replace_file(directory / "index", data)


def _exchange(one: Path, other: Path) -> None:
    """Swaps two names (renameat2(2), RENAME_EXCHANGE); Python has no call for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise Unsupported(f"{other} cannot be replaced: {os.strerror(number)}", hint="keep the state on XFS, btrfs or ext4")
