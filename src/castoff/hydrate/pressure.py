"""Whether work on this host waits for a processor, and how much of its time the background may take then.

The kernel counts the time in which some task waited for a processor (Documentation/accounting/psi.rst). It does not say whose:
the background's own threads count, too, and a host with many busy guests is under pressure always. So pressure makes the
background slower and never stops it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["CPU", "Pressure", "rest"]

CPU: Final = Path("/proc/pressure/cpu")
_EASY: Final = 0.5
"""Share of the time under pressure up to which nothing changes: a fill alone makes about so much on two processors."""
_LEAST: Final = 0.1
"""Share of its time that the background works in any case."""
_WINDOW: Final = 0.5
"""Seconds between two looks, at least: the kernel brings its counts up to date every two seconds, or when they are read."""


class Pressure:
    """The share of late that some task waited for a processor.

    Args:
        path: Where the kernel tells.
        clock: Seconds, monotonic.
    """

    def __init__(self, path: Path = CPU, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._before = clock(), self._total()
        self._share = 0.0

    def share(self) -> float:
        """0 to 1; 0 where the kernel does not count it (built without, or switched off)."""
        at, total = self._before
        now = self._clock()
        if total is not None and now - at >= _WINDOW:
            latest = self._total()
            if latest is not None:
                self._share = min(max((latest - total) / (now - at), 0.0), 1.0)
                self._before = now, latest
        return self._share

    def _total(self) -> float | None:
        """Seconds under pressure since the host's start."""
        try:
            found = re.search(r"^some .*\btotal=(\d+)$", self._path.read_text(), re.MULTILINE)
        except OSError:
            return None
        return int(found[1]) / 1e6 if found else None


def rest(worked: float, share: float) -> float:
    """Seconds to rest after so many seconds of work, while work on this host waits for a processor this share of the time."""
    duty = min(max((1.0 - share) / (1.0 - _EASY), _LEAST), 1.0)
    return worked * (1.0 / duty - 1.0)
