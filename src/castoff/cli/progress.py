"""Progress of long steps on stderr: bars on a terminal, a line every few seconds elsewhere.

An observer of the timeline. Nothing is drawn, imported or started before some step with a known total has run for a
second, so quick commands pay nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from castoff.cli.exits import printable
from castoff.cli.text import duration, rate, size
from castoff.timeline import Step

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Progress"]

_PATIENCE = 1.0
"""Seconds that a step runs before it is worth a bar."""
_FRAME = 0.1
_LINE = 5.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """Shows the steps that have a ``total`` while they run; a context manager, and ``stop`` ends it early.

    Args:
        stream: Where to draw; stderr.
        bars: Bars, or plain lines; None: bars where ``stream`` is a terminal.
        quiet: Show nothing.
    """

    def __init__(self, stream: TextIO | None = None, *, bars: bool | None = None, quiet: bool = False) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._bars = self._stream.isatty() if bars is None else bars
        self._running: dict[int, tuple[Step, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        if quiet:
            self._ended.set()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def on_step(self, step: Step) -> None:
        """Follows a step from its start to its end."""
        with self._lock:
            if step.state != "started":
                self._running.pop(step.id, None)
                return
            if self._ended.is_set():
                return
            self._running[step.id] = (step, time.monotonic())
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="castoff-progress", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Clears what is drawn and draws no more. Idempotent."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _due(self) -> list[tuple[Step, float]]:
        """The steps worth showing, with their age, the oldest first: of a step and those inside it, those inside.

        Also where those inside have just begun: a line of the step around them would come before theirs, and tell less.
        """
        now = time.monotonic()
        with self._lock:
            running = [(step, now - since) for step, since in self._running.values() if step.total]
            parents = {step.id: step.parent for step, _ in self._running.values()}
        around: set[int] = set()
        for step, _ in running:
            above = step.parent
            while above is not None and above not in around:
                around.add(above)
                above = parents.get(above)
        return [(step, age) for step, age in running if age >= _PATIENCE and step.id not in around]

    def _watch(self) -> None:
        while not self._due():
            if self._ended.wait(_FRAME):
                return
        if self._bars:
            self._draw_bars()
        else:
            self._print_lines()

    def _print_lines(self) -> None:
        while True:
            for step, age in self._due():
                print(f"castoff: {label(step)}: {_progress(step, age)}", file=self._stream, flush=True)
            if self._ended.wait(_LINE):
                return

    def _draw_bars(self) -> None:
        display = _display(self._stream)
        tasks: dict[int, TaskID] = {}
        with display:
            while not self._ended.wait(_FRAME):
                due = {step.id: step for step, _ in self._due()}
                for key, step in due.items():
                    if key not in tasks:
                        tasks[key] = display.add_task(label(step), total=step.total)
                    display.update(tasks[key], completed=step.done)
                for key in [key for key in tasks if key not in due]:
                    display.remove_task(tasks.pop(key))


def label(step: Step) -> str:
    """What a step's bar is called: its name and what it works on, digests cut to what tells them apart."""
    subject = next((str(step.attributes[key]) for key in ("layer", "image", "path", "url", "file") if key in step.attributes), "")
    if subject.startswith("sha256:"):
        subject = subject[7:19]
    return printable(f"{step.name} {subject[-40:]}".rstrip())


def _progress(step: Step, age: float) -> str:
    """``45 %, 120 of 267 MB, 31.2 MB/s, 5 s left``."""
    total, done = step.total or 0, step.done
    if not done:
        return f"0 of {size(total)}"
    speed = done / age
    left = duration(max(0, total - done) / speed)
    return f"{min(100, done * 100 // total)} %, {size(done)} of {size(total)}, {rate(speed)}, {left} left"


def _display(stream: TextIO) -> RichProgress:
    # rich takes 60 ms to import and is wanted by long commands only.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    # markup=False: names come from images, and `[red]` in one must not be obeyed.
    parts = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return RichProgress(*parts, console=Console(file=stream), transient=True, refresh_per_second=1 / _FRAME)
