"""docs/compatibility.md against what the server has: routes, and the fields that a configuration is read for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from castoff.api.routes.table import ROUTES
from castoff.api.routes.unserved import UNSERVED
from castoff.lifecycle.config import MachineConfig

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "compatibility.md").read_text()
ROWS = re.findall(r"^\| `([^`]+)` \| (\w+) \| ?(.*?) ?\|$", DOCUMENT, re.MULTILINE)
SCHEMAS = json.loads((ROOT / "tests" / "specs" / "machines-openapi.json").read_text())["components"]["schemas"]


def test_every_route_stands_there_as_it_is_served() -> None:
    """Neither more routes nor fewer; refused ones with the reason that the server gives."""
    rows = {name: (state, note) for name, state, note in ROWS if " /" in name}
    assert rows.keys() == {f"{route.method} {route.path}" for route in ROUTES}
    for name, (state, note) in rows.items():
        method, _, path = name.partition(" ")
        if (method, path) in UNSERVED:
            assert (state, note) == ("refused", UNSERVED[method, path])
        else:
            assert state == "works", name


def described(schema: dict[str, Any], prefix: str = "", depth: int = 2) -> set[str]:
    """The fields of a schema of the published description, two deep."""
    found = set()
    for name, member in schema.get("properties", {}).items():
        many = member.get("type") == "array"
        inner = member.get("items", member) if many else member
        inner = inner.get("additionalProperties", inner) if isinstance(inner.get("additionalProperties"), dict) else inner
        inner = inner["allOf"][0] if "allOf" in inner else inner
        target = SCHEMAS.get(inner.get("$ref", "").rpartition("/")[2], {})
        below = described(target, f"{prefix}{name}{'[]' if many else ''}.", depth - 1) if depth > 1 else set()
        found |= below or {f"{prefix}{name}{'[]' if many else ''}"}
    return found


def typed(kind: Any, prefix: str = "") -> set[str]:
    """The fields that castoff reads."""
    found = set()
    for member in msgspec.structs.fields(kind):
        inner, many = structure(member.type)
        name = f"{prefix}{member.encode_name}{'[]' if many else ''}"
        found |= typed(inner, f"{name}.") if inner is not None else {name}
    return found


def structure(kind: Any) -> tuple[Any, bool]:
    """The struct in a type, if there is one, and whether there is a list of it."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind, False
    for argument in getattr(kind, "__args__", ()):
        found, many = structure(argument)
        if found is not None:
            return found, many or getattr(kind, "__origin__", None) is tuple
    return None, False


def covered(field: str, rows: set[str]) -> bool:
    """Whether a field, or what it is part of, has a row; lists of scalars are named without brackets."""
    parts = field.removesuffix("[]").split(".")
    plain = {row.removesuffix("[]") for row in rows}
    return any(".".join(parts[:end]).removesuffix("[]") in plain for end in range(1, len(parts) + 1))


@pytest.mark.parametrize("field", sorted(described(SCHEMAS["fly.MachineConfig"])))
def test_every_described_field_stands_there(field: str) -> None:
    """Nobody has to guess what becomes of a field."""
    assert covered(field, {name for name, _, _ in ROWS if " /" not in name})


def test_what_works_is_read() -> None:
    """No row says that a field works which nothing reads."""
    known = typed(MachineConfig)
    plain = {name.removesuffix("[]") for name in known}
    for name, state, _ in ROWS:
        if " /" not in name and state == "works":
            field = name.removesuffix("[]")
            assert field in plain or any(other.startswith(f"{name}.") for other in known), name
