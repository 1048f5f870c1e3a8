"""The options that every command takes, and what they mean: where the state is, how to talk."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from castoff.cli.exits import printable

if TYPE_CHECKING:
    from castoff.config import Config
    from castoff.timeline import Timeline

__all__ = ["Globals", "global_options"]


@dataclass(slots=True)
class Globals:
    """What the command line says of every command; the click context's object."""

    entered: float | None = None
    """``time.monotonic()`` when the program began to run."""
    command: str = ""
    state: Path | None = None
    config: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    color: str = "auto"
    _loaded: Config | None = field(default=None, repr=False)

    def load(self) -> Config:
        """The configuration: the files', with the command line on top. Read once."""
        if self._loaded is None:
            from castoff.config import load

            self._loaded = load(self.config, state=self.state)
        return self._loaded

    def origin(self) -> float:
        """``time.monotonic()`` when this process began: Python's own start is part of what a person waits for.

        /proc/self/stat counts from boot (CLOCK_BOOTTIME) in ticks of 10 ms, so it is right within that.
        """
        stat = Path("/proc/self/stat").read_bytes()
        ticks = int(stat[stat.rindex(b")") + 2 :].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - max(0.0, age)

    def record_start(self, timeline: Timeline) -> None:
        """Puts the steps that ended before any timeline could be: Python's start, then castoff's imports."""
        entered = (self.entered or time.monotonic()) - timeline.origin
        for name, started, ended in (("python", 0.0, entered), ("cli", entered, timeline.now())):
            step = timeline.begin(name)
            timeline.end(step)
            step.started, step.ended = max(0.0, started), max(0.0, ended)

    def colours(self, stream: TextIO) -> bool:
        """Whether to colour what goes to ``stream``; honours NO_COLOR (https://no-color.org)."""
        if self.color != "auto":
            return self.color == "always"
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def bar(self) -> str:
        """The character that bars are drawn with."""
        return "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"

    def note(self, text: str) -> None:
        """One line on stderr for a person, unless they asked for quiet."""
        if not self.quiet:
            print(f"castoff: {printable(text)}", file=sys.stderr, flush=True)

    def answer(self, value: Any, text: Callable[[], str]) -> None:
        """A command's answer on stdout: as JSON where a script asked, else as ``text()`` says it."""
        if self.json:
            print(json.dumps(value, indent=2))
        else:
            said = text()
            if said:
                print(said)


class _GivenPath(click.Path):
    """A path that is one: ``--state "$UNSET"`` would mean the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keeps a global option wherever it stood: before the subcommand, or after it, which wins."""
    if value is not None and value is not False:
        assert parameter.name is not None
        setattr(context.ensure_object(Globals), parameter.name, value)


def global_options(*, environment: bool) -> list[click.Option]:
    """The global options, for the root (which reads their environment variables too) and for each subcommand."""
    # Not click's business whether they can be read: whoever reads them says more than "is not readable".
    path = _GivenPath(readable=False, path_type=Path)

    def option(*names: str, env: str | None = None, **rest: Any) -> click.Option:
        return click.Option(
            names, expose_value=False, callback=_store, envvar=env if environment else None, show_envvar=environment, **rest
        )

    return [
        option("--state", type=path, metavar="DIR", env="CASTOFF_STATE", help="Where castoff keeps images and machines."),
        option(
            "--config", type=path, metavar="FILE", env="CASTOFF_CONFIG", help="Configuration file, instead of the usual ones."
        ),
        option("--json", is_flag=True, default=None, help="Answer in JSON, for scripts."),
        option("-q", "--quiet", is_flag=True, default=None, help="No progress, no notes; errors only."),
        option("-v", "--verbose", is_flag=True, default=None, help="Tell more: the timeline, what was chosen and why."),
        option("--debug", is_flag=True, default=None, help="Show the traceback of a failure."),
        option("--color", type=click.Choice(["auto", "always", "never"]), default=None, help="Colours on the terminal."),
    ]
