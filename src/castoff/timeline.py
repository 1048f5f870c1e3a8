"""The timeline of a create: every step started, complete or failed, with its parent, so that overlap shows.

A step is opened where the work happens and named after the module that does it::

    with timeline.step("layers.convert", total=layer.size, layer=str(layer.diff_id)) as step:
        step.advance(len(piece))

Steps find their timeline and their parent through context variables, which asyncio tasks and ``asyncio.to_thread``
inherit; outside of any timeline they cost a few microseconds and go nowhere. Observers see the same events: the CLI's
progress bars are one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

__all__ = ["Observer", "Step", "Timeline", "recording", "step"]

State = Literal["started", "complete", "failed"]


@dataclass(slots=True)
class Step:
    """One step. Times are seconds since the timeline's start, ``total`` and ``done`` bytes (or items) of work."""

    id: int
    parent: int | None
    name: str
    started: float
    ended: float | None = None
    state: State = "started"
    total: int | None = None
    done: int = 0
    error: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    def advance(self, amount: int) -> None:
        """Counts ``amount`` more of the step's work as done."""
        self.done += amount

    def to_dict(self) -> dict[str, Any]:
        """The step as JSON has it; ``null`` fields are left out."""
        row = {
            "id": self.id,
            "parent": self.parent,
            "name": self.name,
            "state": self.state,
            "started": round(self.started, 6),
            "ended": None if self.ended is None else round(self.ended, 6),
            "total": self.total,
            "done": self.done or None,
            "error": self.error,
            "attributes": self.attributes or None,
        }
        return {key: value for key, value in row.items() if value is not None}


class Observer(Protocol):
    """Whoever wants to know of steps as they start and end; called in the thread where the step runs, must not block."""

    def on_step(self, step: Step) -> None: ...


class Timeline:
    """The steps of one create, in the order of their start.

    Args:
        origin: ``time.monotonic()`` of second zero; now, by default. The CLI passes the start of its own process.
        observers: Told of each step's start and end.
        limit: Steps that are kept; of later ones nothing is. For those who keep many timelines, or long ones.
    """

    def __init__(self, *, origin: float | None = None, observers: Sequence[Observer] = (), limit: int | None = None) -> None:
        self.origin = time.monotonic() if origin is None else origin
        self.steps: list[Step] = []
        self._limit = limit
        self._observers = tuple(observers)
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since the origin."""
        return time.monotonic() - self.origin

    def begin(self, name: str, *, parent: int | None = None, total: int | None = None, **attributes: Any) -> Step:
        """Starts a step that ``end`` ends; prefer :func:`step`."""
        with self._lock:
            step = Step(len(self.steps), parent, name, self.now(), total=total, attributes=attributes)
            self.steps.append(step)
        for observer in self._observers:
            observer.on_step(step)
        return step

    @property
    def is_full(self) -> bool:
        """Whether it takes no further step."""
        return self._limit is not None and len(self.steps) >= self._limit

    def add(self, name: str, started: float, ended: float, *, parent: int | None = None, **attributes: Any) -> Step:
        """A step that is over already, which somebody else has timed. Seconds since the origin."""
        with self._lock:
            step = Step(len(self.steps), parent, name, started, ended, "complete", attributes=attributes)
            self.steps.append(step)
        for observer in self._observers:
            observer.on_step(step)
        return step

    def end(self, step: Step, error: BaseException | None = None) -> None:
        """Ends a step, as failed where there is an error."""
        step.ended = self.now()
        step.state = "failed" if error else "complete"
        step.error = (str(error) or type(error).__name__) if error else None
        for observer in self._observers:
            observer.on_step(step)

    def to_dict(self) -> dict[str, Any]:
        """The timeline as JSON has it: ``{"version": 1, "steps": [...]}``."""
        return {"version": 1, "steps": [step.to_dict() for step in self.steps]}


_timeline: ContextVar[Timeline | None] = ContextVar("castoff_timeline", default=None)
_parent: ContextVar[int | None] = ContextVar("castoff_step", default=None)


@contextmanager
def recording(timeline: Timeline) -> Iterator[Timeline]:
    """Makes ``timeline`` the one that :func:`step` writes to inside the block."""
    token = _timeline.set(timeline)
    root = _parent.set(None)
    try:
        yield timeline
    finally:
        _parent.reset(root)
        _timeline.reset(token)


def step(name: str, *, total: int | None = None, **attributes: Any) -> AbstractContextManager[Step]:
    """Times the block as one step of the current timeline; an exception marks it failed and goes on."""
    return _Timed(name, total, attributes)


class _Timed(AbstractContextManager[Step]):
    """A class, since a generator costs as much again as all else of a step, and a create has a dozen."""

    __slots__ = ("_attributes", "_name", "_step", "_timeline", "_token", "_total")

    def __init__(self, name: str, total: int | None, attributes: dict[str, Any]) -> None:
        self._name, self._total, self._attributes = name, total, attributes
        self._timeline: Timeline | None = None

    def __enter__(self) -> Step:
        timeline = _timeline.get()
        if timeline is None or timeline.is_full:
            return Step(0, None, self._name, 0.0, total=self._total, attributes=self._attributes)
        self._timeline = timeline
        self._step = timeline.begin(self._name, parent=_parent.get(), total=self._total, **self._attributes)
        self._token = _parent.set(self._step.id)
        return self._step

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._timeline is not None:
            try:
                self._timeline.end(self._step, error)
            finally:
                _parent.reset(self._token)
