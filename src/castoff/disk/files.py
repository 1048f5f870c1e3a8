"""A machine's own drive files: made whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from castoff.errors import Conflict, NotFound, Unauthorized
from castoff.store.space import no_space_as

__all__ = ["created", "reading"]


@contextmanager
def created(path: Path, *, needed: int = 0) -> Iterator[tuple[Path, int]]:
    """A new file and its descriptor, open for the block; where the block fails the file is gone.

    Args:
        path: The file, readable and writable by its owner alone.
        needed: Bytes that it will take, for the message when the disk is full.

    Raises:
        Conflict: There is one already: the machine has its clone.
        NotFound: Its directory is gone.
        NoSpace: The disk is full.
    """
    with no_space_as(path, needed=needed):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise Conflict(f"{path} exists", hint="destroy the machine that it belongs to") from error
        except FileNotFoundError as error:
            raise NotFound(f"{path.parent} does not exist", hint="the machine was destroyed meanwhile") from error
        try:
            yield path, descriptor
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            raise
        finally:
            os.close(descriptor)


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """A descriptor of ``path``, open for reading during the block.

    Raises:
        NotFound, Unauthorized: It is missing, or not ours to read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist", hint="it was removed since it was found; try again") from error
    except PermissionError as error:
        raise Unauthorized(f"{path} may not be read by uid {os.geteuid()}", hint="change its owner or mode") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
