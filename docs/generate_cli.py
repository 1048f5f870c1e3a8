"""Writes the second half of docs/cli.md: every command and flag, from the commands themselves.

Run ``python docs/generate_cli.py`` after changing a command; a test fails while the page is out of date.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from castoff.cli.app import cli
from castoff.cli.globals import global_options

DOCUMENT = Path(__file__).resolve().parent / "cli.md"

MARK = "<!-- From here on: python docs/generate_cli.py -->\n"


def document() -> str:
    """docs/cli.md."""
    context = click.Context(cli, info_name="castoff")
    shared = [
        "## Global options",
        "",
        "Before the command or behind it; the one behind wins.",
        "",
        *_options(global_options(environment=True), context),
    ]
    written = DOCUMENT.read_text().partition(MARK)[0]
    return "\n".join([written + MARK, *shared, "", *_commands(cli, context)]).rstrip() + "\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        arguments = " ".join(piece for piece in command.collect_usage_pieces(inner) if piece != "[OPTIONS]")
        yield f"{'##' if context.parent is None else '###'} {inner.command_path} {arguments}".rstrip()
        yield ""
        yield _prose(command)
        own = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        if own:
            yield ""
            yield from _options(own, inner)
        yield ""
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _prose(command: click.Command) -> str:
    """A command's help as Markdown: a paragraph that click is told not to rewrap is code."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(f"```\n{text.removeprefix(chr(8)).strip()}\n```" if text.startswith("\b") else text for text in paragraphs)


def _options(options: list[click.Option], context: click.Context) -> Iterator[str]:
    yield "| flag | meaning |"
    yield "|---|---|"
    for option in options:
        record = option.get_help_record(context)
        if record is not None:
            yield "| {} | {} |".format(*(f"`{record[0]}`".replace("|", "\\|"), record[1].replace("|", "\\|")))


if __name__ == "__main__":
    DOCUMENT.write_text(document())
