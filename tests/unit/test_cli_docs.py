"""docs/cli.md tells of everything that there is."""

from collections.abc import Iterator
from pathlib import Path

import click

from castoff.cli.app import cli
from castoff.cli.exits import Exit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")


def _section(path: str) -> str:
    """A command's own section of the page."""
    for level in ("##", "###"):
        for end in ("\n", " "):
            _, found, rest = PAGE.partition(f"\n{level} {path}{end}")
            if found:
                return rest.partition("\n## ")[0].partition("\n### ")[0]
    raise AssertionError(f"docs/cli.md has no section on {path}: run python docs/generate_cli.py")


def test_every_command_and_flag_is_documented() -> None:
    """Each under its own heading, with its help."""
    seen = 0
    for path, command in _commands(cli, "castoff"):
        section = _section(path)
        assert (command.help or "").splitlines()[0] in section
        for option in command.params:
            if isinstance(option, click.Option):
                seen += 1
                assert all(name in section for name in option.opts), (path, option.opts)
                assert option.help and option.help.replace("|", "\\|") in section, (path, option.opts)
    assert seen > 25


def test_every_global_option_and_its_variable_is_documented() -> None:
    """Once for all commands."""
    section = PAGE.partition("\n## Global options\n")[2].partition("\n## ")[0]
    for option in cli.params:
        assert isinstance(option, click.Option)
        assert all(name in section for name in option.opts)
        if option.envvar:
            assert f"`{option.envvar}`" in PAGE


def test_every_exit_code_is_documented() -> None:
    """In one of the two tables."""
    for code in Exit:
        assert f"\n| {code.value} | " in PAGE, code
