"""One command's work on a host: its loop, its progress, its timeline."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from castoff.cli.exits import printable
from castoff.cli.globals import Globals
from castoff.cli.progress import Progress
from castoff.errors import Invalid
from castoff.timeline import Timeline, recording

if TYPE_CHECKING:
    from castoff.host import Host

__all__ = ["on_host", "shown"]

T = TypeVar("T")


def on_host(
    shared: Globals,
    work: Callable[[Host], Coroutine[Any, Any, T]],
    *,
    progress: Progress | None = None,
    timeline_file: str | None = None,
    title: str = "",
) -> T:
    """Opens the host and does ``work`` on it.

    Args:
        shared: The command line's global options.
        work: What to do.
        progress: Shows it; where ``work`` must stop it early, made by the caller.
        timeline_file: Where its timeline goes as JSON, of a failure too; ``-`` draws it on stderr.
        title: Of the drawing.
    """
    from castoff.cli.loop import complete
    from castoff.host import Host

    if timeline_file not in (None, "-"):
        _check_writable(Path(timeline_file))
    progress = progress or shown(shared)
    timeline = Timeline(origin=shared.origin(), observers=(progress,))
    shared.record_start(timeline)

    async def session() -> T:
        async with Host.open(config=shared.load(), notice=shared.note) as host:
            return await work(host)

    try:
        with recording(timeline), progress:
            return complete(session())
    finally:
        _tell(shared, timeline, timeline_file, title)


def shown(shared: Globals) -> Progress:
    """Progress as the command line wants it: none for scripts."""
    return Progress(quiet=shared.quiet or shared.json)


def _tell(shared: Globals, timeline: Timeline, file: str | None, title: str) -> None:
    if file == "-" or (shared.verbose and not shared.quiet):
        from castoff.cli.waterfall import waterfall

        width = shutil.get_terminal_size((100, 24)).columns
        print(waterfall(timeline.to_dict(), width=width, bar=shared.bar(), title=printable(title)), file=sys.stderr)
    if file is not None and file != "-":
        with _timeline_errors(Path(file)):
            Path(file).write_text(json.dumps(timeline.to_dict(), indent=1) + "\n")


def _check_writable(file: Path) -> None:
    """Told now, not when the command has run and its exit code would be lost."""
    with _timeline_errors(file), file.open("a"):
        pass


@contextlib.contextmanager
def _timeline_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Invalid(
            f"timeline {file} cannot be written: {error.strerror}", hint=f"is {file.parent} there, and yours to write?"
        ) from error
