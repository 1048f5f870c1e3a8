"""What all processes of a host have taken from other hosts and from the registry, added up in a small file for the metrics.

Fetching is done by hydrators and by commands, and told by the agent. Each adds what it took now and then, and at its end; a
process that is killed loses a second of counting.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

__all__ = ["Taken", "Tally", "read_tally", "tally_path"]

_MAGIC = b"castoffT"
_EVERY = 1.0


@dataclass(slots=True)
class Taken:
    """Counts that only grow."""

    peer_bulk: int = 0
    """Bytes of packs that other hosts gave."""
    peer_urgent: int = 0
    """The same of chunks that a guest waited for."""
    registry_bulk: int = 0
    registry_urgent: int = 0
    peer_waits: int = 0
    """Reads that a guest waited for, and another host answered."""
    registry_waits: int = 0
    peer_wait_us: int = 0
    """Microseconds that those took together."""
    registry_wait_us: int = 0
    left_alone: int = 0
    """How often another host was left alone for a while: it lied, failed, or was slow."""


_FORM = struct.Struct(f"<8s{len(fields(Taken))}Q")


def tally_path(state: Path) -> Path:
    """Where a host's is."""
    return state / "peers.tally"


def read_tally(state: Path) -> Taken:
    """What was taken so far; zeros where nothing was, or the file is broken. Blocks."""
    with contextlib.suppress(OSError, struct.error):
        magic, *counts = _FORM.unpack(tally_path(state).read_bytes())
        if magic == _MAGIC:
            return Taken(*counts)
    return Taken()


class Tally:
    """Counts for one process, and adds them to the host's file. Any thread may call it.

    Args:
        state: The host's state directory.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._taken = Taken()
        self._written = time.monotonic()

    def came(self, size: int, *, peer: bool, urgent: bool, seconds: float) -> None:
        """Bytes came; ``seconds`` after they were asked for, where a guest waited."""
        taken = self._taken
        with self._lock:
            match peer, urgent:
                case True, True:
                    taken.peer_urgent += size
                    taken.peer_waits += 1
                    taken.peer_wait_us += round(seconds * 1e6)
                case False, True:
                    taken.registry_urgent += size
                    taken.registry_waits += 1
                    taken.registry_wait_us += round(seconds * 1e6)
                case True, False:
                    taken.peer_bulk += size
                case _:
                    taken.registry_bulk += size

    def left_alone(self) -> None:
        """Another host is left alone for a while."""
        with self._lock:
            self._taken.left_alone += 1

    @property
    def is_due(self) -> bool:
        """Whether the last :meth:`write` was a while ago."""
        return time.monotonic() - self._written > _EVERY

    def write(self) -> None:
        """Adds what was counted since the last time. Blocks. A disk that takes nothing loses counts, and no chunk."""
        with self._lock:
            taken, self._taken, self._written = self._taken, Taken(), time.monotonic()
        if taken == Taken():
            return
        with contextlib.suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(tally_path(self._state), flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                before = read_tally(self._state)
                both = (one + other for one, other in zip(astuple(before), astuple(taken), strict=True))
                os.pwrite(descriptor, _FORM.pack(_MAGIC, *both), 0)
            finally:
                os.close(descriptor)
