"""Writes docs/configuration.md and packaging/config.example.toml from the settings' own docstrings and defaults.

Run ``python docs/generate_configuration.py`` after changing a setting; a test fails while they are out of date.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from castoff.cli.config import toml_value
from castoff.config import Config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "configuration.md"
EXAMPLE = ROOT / "packaging" / "config.example.toml"

INTRODUCTION = """\
# Configuration

castoff needs none: every setting has a default. What there is, is one tree, read from TOML files, the later over the earlier:

1. `/etc/castoff/config.toml`
2. `$XDG_CONFIG_HOME/castoff/config.toml` (`~/.config/castoff/config.toml`)

or from the one file that `--config FILE` or `CASTOFF_CONFIG` names, alone. Flags win over files. Tables are merged key by key,
lists are replaced whole. A key that castoff does not know, or a value of another type, is an error that names the key and the
file: a misspelt setting is never passed over.

`castoff config show` prints the whole tree as it is in force (as TOML, or with `--json`), `castoff config check [FILE...]` checks
files. `packaging/config.example.toml` holds every setting with its default, commented out.

This page and that file are made from the settings' own docstrings by `python docs/generate_configuration.py`. Sizes are bytes,
times are seconds. TOML has no null: a setting that is unset by default is set by having it.
"""

EXAMPLE_INTRODUCTION = """\
# castoff's configuration: every setting with its default. Copy it to /etc/castoff/config.toml or
# ~/.config/castoff/config.toml and uncomment what you want to change. docs/configuration.md tells the same as a page.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: where it is, what it holds, what it is for."""

    table: tuple[str, ...]
    name: str
    kind: str
    default: Any
    text: str


def settings(struct: type[msgspec.Struct] = Config, table: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every setting of the tree, those of a table before those of the tables in it."""
    texts = _docstrings(struct)
    inner = []
    for field in msgspec.structs.fields(struct):
        nested = _struct_of(field.type)
        if nested is not None:
            inner.append((nested, (*table, field.name)))
        if nested is None or _is_optional(field.type):
            yield Setting(table, field.name, _kind(field.type), _default(field), texts[field.name])
    for nested, place in inner:
        yield from settings(nested, place)


def document() -> str:
    """docs/configuration.md."""
    parts, table = [INTRODUCTION], None
    for setting in settings():
        if setting.table != table:
            table = setting.table
            parts.append(f"## {'.'.join(f'{part}' for part in table)}\n" if table else "## At the top\n")
        default = f"default `{toml_value(setting.default)}`" if setting.default is not None else "unset by default"
        parts.append(f"**`{setting.name}`** ({setting.kind}, {default})  \n{setting.text}\n")
    return "\n".join(parts)


def example() -> str:
    """packaging/config.example.toml."""
    lines, table = [EXAMPLE_INTRODUCTION], ()
    for setting in settings():
        if setting.table != table:
            table = setting.table
            lines.append(f"[{'.'.join(table)}]\n" if not _is_unset_table(table) else f"#[{'.'.join(table)}]\n")
        text = setting.text.replace("`", "")
        lines.extend(textwrap.wrap(text, 118, initial_indent="# ", subsequent_indent="# "))
        value = "" if setting.default is None else f" {toml_value(setting.default)}"
        lines.append(f"#{setting.name} ={value}\n" if value else f"# {setting.name}: unset by default\n")
    return "\n".join(lines)


def _is_unset_table(table: tuple[str, ...]) -> bool:
    """Whether a table's mere presence means something, so that the example must not have it."""
    return any((*setting.table, setting.name) == table for setting in settings())


def _docstrings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The string below each field of a class, on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(struct))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(str(text.value.value).replace("``", "`").split())
            elif _struct_of(typing.get_type_hints(struct)[field.target.id]) is not None:
                found[field.target.id] = ""
            else:
                raise SystemExit(f"{struct.__module__}.{struct.__name__}.{field.target.id} has no docstring")
    return found


def _parts(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _struct_of(kind: Any) -> type[msgspec.Struct] | None:
    for part in _parts(kind):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            return part
    return None


def _is_optional(kind: Any) -> bool:
    return type(None) in _parts(kind)


def _kind(kind: Any) -> str:
    """A type in words."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _kind(typing.get_args(kind)[0])
    if origin is typing.Literal:
        return " or ".join(f"`{toml_value(value)}`" for value in typing.get_args(kind))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in typing.get_args(kind) if part is not type(None))
    if origin in (tuple, list):
        return f"list of {_plural(typing.get_args(kind)[0])}"
    if origin is dict:
        value = typing.get_args(kind)[1]
        return f"table of {_plural(value)}"
    if hasattr(kind, "__members__"):
        return " or ".join(f"`{toml_value(member.value)}`" for member in kind)
    names = {str: "string", int: "integer", float: "number", bool: "boolean", Path: "path"}
    return names.get(kind) or "table"


def _plural(kind: Any) -> str:
    text = _kind(kind)
    return text if "`" in text else text.replace("list", "lists") if text.startswith("list") else f"{text}s"


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.name == "state" and field.default_factory is not msgspec.NODEFAULT:
        return "/var/lib/castoff"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return msgspec.to_builtins(value, enc_hook=str)


if __name__ == "__main__":
    DOCUMENT.write_text(document())
    EXAMPLE.write_text(example())
