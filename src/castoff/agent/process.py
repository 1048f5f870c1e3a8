"""What the agent asks of its own process: descriptors, and a garbage collector that does not hold up a thousand machines."""

from __future__ import annotations

import contextlib
import gc
import resource
from typing import Final

__all__ = ["calm_collector", "raise_descriptors"]

_YOUNG: Final = 10_000
"""Allocations between two looks at the youngest objects."""
_MIDDLE: Final = 20
_OLD: Final = 100
"""A full collection goes through everything that is known of every machine: 40 ms with a thousand of them, in which no request is
answered. What a request leaves behind in cycles is young, so full ones may be rare."""


def raise_descriptors() -> int:
    """Raises the limit of open files to what the process may have; the limit then.

    Many systems give 1024 at first, for programs that use select(2), and let each ask for more: clients, machines and their
    layers take some of it each.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # the kernel's own limit, fs.nr_open, is lower than this one
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def calm_collector() -> None:
    """Leaves what is there now alone for good, and looks at the rest less often. To be called at the end of the start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
