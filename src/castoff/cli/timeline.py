"""``castoff timeline``: draws stored timelines, several side by side on one scale."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from castoff.cli.app import Command
from castoff.cli.globals import Globals
from castoff.cli.waterfall import beside, waterfall
from castoff.errors import Invalid, NotFound

__all__ = ["command"]

_LIMIT = 16 * 1024 * 1024
_DEEPEST = 64


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, metavar="[TITLE=]FILE...", type=str)
@click.pass_obj
def command(shared: Globals, files: tuple[str, ...]) -> None:
    """Draw stored timelines, several side by side.

    They are the files of `castoff run --timeline FILE`.

    \b
    castoff timeline cold=first.json warm=second.json
    """
    named = [_named(text) for text in files]
    timelines = [(title, _read(path)) for title, path in named]
    if len(timelines) == 1:
        title, only = timelines[0]
        width = shutil.get_terminal_size((100, 24)).columns
        shared.answer(only, lambda: waterfall(only, width=width, bar=shared.bar(), title=title))
    else:
        shared.answer([only for _, only in timelines], lambda: beside(timelines, bar=shared.bar()))


def _named(text: str) -> tuple[str, Path]:
    title, equals, file = text.partition("=")
    return (title, Path(file)) if equals else (Path(text).stem, Path(text))


class _Step(msgspec.Struct):
    """A step as ``Step.to_dict`` writes it; what else a later version adds is passed over."""

    id: int
    name: str
    started: float
    state: Literal["started", "complete", "failed"]
    parent: int | None = None
    ended: float | None = None
    total: int | None = None
    error: str | None = None


class _Stored(msgspec.Struct):
    version: Literal[1]
    steps: list[_Step]


def _read(path: Path) -> dict[str, Any]:
    """A stored timeline, bounded and checked: it may have come from anybody."""
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise NotFound(f"timeline {path} cannot be read: {error.strerror}") from error
    if len(data) > _LIMIT:
        raise Invalid(f"timeline {path} is over {_LIMIT >> 20} MiB")
    try:
        stored: dict[str, Any] = msgspec.to_builtins(msgspec.json.decode(data, type=_Stored))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{path} is not a timeline: {error}", hint="`castoff run --timeline FILE` writes one") from error
    _check_tree(path, stored["steps"])
    return stored


def _check_tree(path: Path, steps: list[dict[str, Any]]) -> None:
    """Each step inside an earlier one, none too deep: else drawing would not end, or take all memory."""
    depths: dict[int, int] = {}
    for step in steps:
        parent = step["parent"]
        depth = 0 if parent is None else depths.get(parent, _DEEPEST) + 1
        if step["id"] in depths or depth > _DEEPEST:
            raise Invalid(
                f"{path} is not a timeline: step {step['id']} is there twice, too deep, or before the step that it is part of"
            )
        depths[step["id"]] = depth
