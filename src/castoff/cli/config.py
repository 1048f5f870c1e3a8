"""``castoff config``: what the configuration is, and whether a file is one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from castoff.cli.app import Group
from castoff.cli.globals import Globals

__all__ = ["command", "toml", "toml_value"]


@click.group(cls=Group)
def command() -> None:
    """Show and check the configuration."""


@command.command()
@click.pass_obj
def show(shared: Globals) -> None:
    """Show the whole configuration as castoff sees it: defaults, files and flags together, as TOML or JSON."""
    import msgspec

    tree = msgspec.to_builtins(shared.load(), enc_hook=str)
    shared.answer(tree, lambda: toml(tree))


@command.command()
@click.argument("files", nargs=-1, type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def check(shared: Globals, files: tuple[Path, ...]) -> None:
    """Check configuration files: those given, or the ones that castoff reads by itself."""
    from castoff.config import default_files, read_file

    chosen = files or ((shared.config,) if shared.config else tuple(file for file in default_files() if file.exists()))
    for file in chosen:
        read_file(file)
    said = [str(file) for file in chosen]
    shared.answer(
        {"files": said, "valid": True},
        lambda: "\n".join(f"{file}: good" for file in said) or "no configuration file; defaults apply",
    )


def toml(tree: Mapping[str, Any]) -> str:
    """A configuration tree as TOML: what ``castoff config show`` prints can be read again by ``--config``."""
    return "\n".join(_table(tree, ())).strip()


def _table(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield ""
        yield f"[{'.'.join(_key(part) for part in path)}]"
    for key, value in tree.items():
        if value is not None and not isinstance(value, Mapping):
            yield f"{_key(key)} = {toml_value(value)}"
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _table(value, (*path, key))


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else _string(key)


def toml_value(value: Any) -> str:
    """One value, as TOML writes it."""
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(part) for part in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {toml_value(part)}" for key, part in value.items()) + "}"
    return json.dumps(value)  # booleans, integers and floats read the same in both


def _string(text: str) -> str:
    """A TOML basic string: JSON's form is one, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
