"""The last creates of this agent, each with its timeline: what the page draws, and what metrics and traces are made of.

A create begins with the request for it (:meth:`Creates.asked`) or, where nobody asked (a restart, a schedule), with the launch
itself (:meth:`Creates.launching`); it ends when the machine's command runs, or with a failure. What goes on in it later, its
data coming in, is still written to its timeline. Sinks are told of every step as it starts and ends, in the thread where it
runs.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from castoff.timeline import Step, Timeline, recording

__all__ = ["Create", "CreateSink", "Creates"]

KEEP: Final = 200
"""Creates that are remembered."""
STEPS: Final = 400
"""Steps of one that are."""


@dataclass(slots=True)
class Create:
    """One create. ``began`` is Unix seconds at the timeline's second zero, ``ended`` seconds since then."""

    began: float
    timeline: Timeline
    machine: str = ""
    app: str = ""
    image: str = ""
    ended: float | None = None
    state: Literal["running", "complete", "failed"] = "running"
    error: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Of sinks: what one has to remember of it."""

    def to_dict(self) -> dict[str, Any]:
        """It as JSON has it, its timeline in ``steps``."""
        return {
            "machine": self.machine,
            "app": self.app,
            "image": self.image,
            "began": self.began,
            "ended": self.ended,
            "now": self.timeline.now(),
            "state": self.state,
            "error": self.error,
            "steps": [_public(step) for step in list(self.timeline.steps)],
        }


def _public(step: Step) -> dict[str, Any]:
    """A step without what only the host's operator should know: paths, names of other machines."""
    row = step.to_dict()
    row["attributes"] = {key: value for key, value in step.attributes.items() if isinstance(value, (int, float))}
    return row


class CreateSink(Protocol):
    """Whoever makes something of creates. Must not block."""

    def on_step(self, create: Create, step: Step) -> None:
        """A step has started, or ended. Called in any thread."""
        ...

    def on_end(self, create: Create, error: BaseException | None) -> None:
        """The machine's command runs, or never will. Called once."""
        ...


_asked: ContextVar[Create | None] = ContextVar("castoff_create", default=None)


class Creates:
    """Remembers the last creates, in memory.

    Args:
        sinks: Told of each.
        keep: How many are remembered.
    """

    def __init__(self, sinks: Sequence[CreateSink] = (), *, keep: int = KEEP) -> None:
        self._sinks = tuple(sinks)
        self._keep = keep
        self._last: OrderedDict[str, Create] = OrderedDict()
        self._launching = 0

    @contextlib.contextmanager
    def asked(self, app: str, *, since: float | None = None) -> Iterator[None]:
        """The block handles a request for a machine: the launch that comes of it began here, or at ``since`` of
        time.monotonic(), when the request came."""
        token = _asked.set(self._begin(app, since))
        try:
            yield
        finally:
            _asked.reset(token)

    @contextlib.contextmanager
    def resolving(self) -> Iterator[None]:
        """The block looks an image up; what fails in it fails the create that it is for."""
        create = _asked.get()
        if create is None or create.ended is not None:
            create = self._begin("")
        with self._failing(create), recording(create.timeline):
            yield

    @contextlib.contextmanager
    def launching(self, *, machine: str, app: str, image: str) -> Iterator[Create]:
        """The block launches a machine."""
        create = _asked.get()
        if create is None or create.machine or create.ended is not None:  # asked for another launch, perhaps long ago
            create = self._begin(app)
        create.machine, create.app, create.image = machine, app, image
        self._remember(create)
        self._launching += 1
        try:
            with self._failing(create), recording(create.timeline):
                yield create
        finally:
            self._launching -= 1
        self._end(create, None)

    def under_way(self) -> bool:
        """Whether a machine is being launched now."""
        return self._launching > 0

    def of(self, machine: str) -> Create | None:
        """The last create of a machine; None where it was not since the agent started, or too long ago."""
        return self._last.get(machine)

    def last(self, app: str | None = None) -> list[Create]:
        """Those that are remembered, the newest first; of one app or of all."""
        return [create for create in reversed(self._last.values()) if app is None or create.app == app]

    def _begin(self, app: str, since: float | None = None) -> Create:
        observer = _Observer(self._sinks)
        timeline = Timeline(origin=since, observers=(observer,), limit=STEPS)
        create = Create(time.time() - timeline.now(), timeline, app=app)
        observer.create = create
        return create

    def _remember(self, create: Create) -> None:
        self._last.pop(create.machine, None)
        self._last[create.machine] = create
        while len(self._last) > self._keep:
            self._last.popitem(last=False)

    @contextlib.contextmanager
    def _failing(self, create: Create) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._end(create, error)
            raise

    def _end(self, create: Create, error: BaseException | None) -> None:
        create.ended = create.timeline.now()
        create.state = "failed" if error else "complete"
        create.error = (str(error) or type(error).__name__) if error else ""
        for sink in self._sinks:
            sink.on_end(create, error)


class _Observer:
    """Hands a timeline's steps on, with those that only the guest could time."""

    def __init__(self, sinks: Sequence[CreateSink]) -> None:
        self.create: Create | None = None
        self._sinks = sinks

    def on_step(self, step: Step) -> None:
        assert self.create is not None
        for sink in self._sinks:
            sink.on_step(self.create, step)
        if step.name == "machine.boot" and step.state == "complete" and step.ended is not None:
            _guest(self.create.timeline, step, step.ended)


def _guest(timeline: Timeline, boot: Step, ended: float) -> None:
    """The guest's own account of its boot (castoff.vmm.channel.Ready, in the step's attributes), as steps.

    Its clock begins with its kernel, and its last mark, the command, is the end of the boot: so the instants are known to
    within the way of one message.
    """
    kernel, drivers, init = (boot.attributes.get(f"{name}_ms") for name in ("kernel", "drivers", "init"))
    if kernel is None or drivers is None or init is None or timeline.is_full:
        return
    started = max(boot.started, ended - (kernel + init) / 1000)  # guests are hostile: inside the boot, whatever it says
    reached = min(ended, started + kernel / 1000)
    timeline.add("guest.kernel", started, reached, parent=boot.id)
    inside = timeline.add("guest.init", reached, ended, parent=boot.id)
    timeline.add("guest.drivers", reached, min(ended, reached + drivers / 1000), parent=inside.id)
