"""The port through which an incomplete rootfs is served: a *front* takes the guest's requests and asks the core.

Words: a *row* is one chunk that this rootfs wants (castoff.hydrate.map); bytes without a row are always there. A row is
absent, being filled, or present, and never goes back from present. The core (castoff.hydrate.served) fills ``root.ext4``
through a descriptor that raises no events, then marks the row present; only then may a front let a request through.

Lifecycle of a front: made over the rootfs' two descriptors (new ones, or those that a dead hydrator left), ``start``ed
with its core, told ``complete`` when every row is present or ``stop`` when the hydrator goes while it is not.

The two descriptors: *front* (fanotify: the group; FUSE: the connection's /dev/fuse) and *fill* (``root.ext4``, opened for
reading and writing before anything watched it). Both are also held by the keeper, and by the VMM where it inherits them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from castoff.hydrate.answerer import Uses

__all__ = ["Answer", "Descriptors", "Hydration", "LazyFront", "Recorder"]

Answer = Callable[[int], None]
"""Ends a request that waited: 0 lets it through, else it fails with that errno. Called once, on any thread; it must not block."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What a front stands on, and what must outlive the hydrator."""

    front: int
    fill: int


class Hydration(Protocol):
    """The core, as a front sees it. All may be called on any thread, and wait for nothing."""

    def present(self, start: int, end: int) -> bool:
        """Whether bytes ``start`` to ``end`` (exclusive) of the rootfs are there. Never waits; takes no lock."""
        ...

    @property
    def holes(self) -> bytearray:
        """[chunks] 0 for each chunk of the rootfs that is there, and of which ``present`` has nothing more to tell than that.
        The same object for ever."""
        ...

    def want(self, start: int, end: int, answer: Answer) -> None:
        """A request waits for these bytes: ``answer`` is called when they are there, or cannot be had."""
        ...

    recorder: Recorder | None
    """Who is to be told of every request, once it was answered or handed to ``want``; None: nobody (any more)."""


class LazyFront(Protocol):
    """Serves one rootfs."""

    @property
    def descriptors(self) -> Descriptors:
        """What it stands on."""
        ...

    def start(self, hydration: Hydration) -> None:
        """Begins to take requests, on threads of its own. What a predecessor left unanswered is asked for first."""
        ...

    def complete(self) -> None:
        """Every byte is there: lets go of the rootfs without any request being lost. Blocks for as long as that takes."""
        ...

    def stop(self) -> None:
        """Ends its threads. Requests stay where they are, for a successor over the same descriptors. Blocks."""
        ...

    def abandon(self) -> None:
        """The machine is gone, its rootfs whole or not: lets go. Ends ``complete`` where that is under way. Blocks."""
        ...

    def close(self) -> None:
        """Closes the descriptors (this process' copies), after ``complete``, ``stop`` or ``abandon``."""
        ...


class Recorder(Protocol):
    """Is told of every request of one rootfs: makes boot profiles."""

    @property
    def uses(self) -> Uses:
        """Where a compiled front writes requests down; it calls nothing else."""
        ...

    def access(self, start: int, end: int, when: float, missed: bool) -> None:
        """A request for bytes ``start`` to ``end`` of the rootfs.

        Called on the front's thread after the request was answered or handed on: 2 us are a lot here.

        Args:
            start: First byte.
            end: Byte after the last.
            when: time.monotonic() at its arrival.
            missed: It had to wait.
        """
        ...
