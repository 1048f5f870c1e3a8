"""GraphQL query documents, as far as clients of the Machines API send them: selections with aliases, arguments, variables and
fragments. Source: the GraphQL specification, October 2021, sections 2.1 to 2.10. Introspection, directives and subscriptions
are not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from castoff.errors import Invalid

__all__ = ["Field", "Operation", "parse"]

_LONGEST: Final = 64 * 1024
_DEEPEST: Final = 24
_MOST_FIELDS: Final = 2000
_TOKEN: Final = re.compile(
    r"""(?P<skip>[\s,﻿]+|\#[^\n\r]*)|(?P<spread>\.\.\.)|(?P<mark>[!$():=@\[\]{}|&])|(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)|(?P<string>"(?:[^"\\\n\r]|\\.)*")""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Field:
    """A field that is asked for.

    Attributes:
        name: Its name.
        key: Its name in the answer: the alias where there is one.
        arguments: Values by name, variables filled in.
        selection: What of its value is asked for; empty for a scalar.
    """

    name: str
    key: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    selection: tuple[Field, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """``kind`` is query or mutation; ``selection`` holds its root fields."""

    kind: str
    selection: tuple[Field, ...]


def parse(text: str, variables: Mapping[str, Any]) -> Operation:
    """The first operation of a document.

    Raises:
        Invalid: It is none, or it is larger or deeper than any that a client has reason to send.
    """
    if len(text) > _LONGEST:
        raise Invalid("the query is too long")
    return _Parser(_tokens(text), variables).document()


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Invalid(f"the query has something unexpected at character {position}")
        if match.lastgroup != "skip":
            tokens.append((match.lastgroup or "", match.group()))
        position = match.end()
    return [*tokens, ("end", "")]


class _Parser:
    """Recursive descent. A fragment may stand after its use, so spreads are kept by name and filled in at the end."""

    def __init__(self, tokens: list[tuple[str, str]], variables: Mapping[str, Any]) -> None:
        self._tokens = tokens
        self._at = 0
        self._variables = dict(variables)
        self._fragments: dict[str, list[Field | str]] = {}
        self._fields = 0

    def document(self) -> Operation:
        operation: tuple[str, list[Any]] | None = None
        while self._peek()[0] != "end":
            if self._peek()[1] == "fragment":
                self._fragment()
            else:
                found = self._operation()
                operation = operation or found
        if operation is None:
            raise Invalid("the query has no operation")
        return Operation(operation[0], self._filled(operation[1], 0))

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at]

    def _next(self, *, kind: str = "", text: str = "") -> str:
        found = self._tokens[self._at]
        if (kind and found[0] != kind) or (text and found[1] != text):
            raise Invalid(f"the query has {found[1] or 'its end'!r} where {text or 'a ' + kind!r} belongs")
        self._at += 1
        return found[1]

    def _took(self, text: str) -> bool:
        if self._peek()[1] != text or self._peek()[0] == "string":
            return False
        self._at += 1
        return True

    def _operation(self) -> tuple[str, list[Any]]:
        kind = "query"
        if self._peek()[0] == "name":
            kind = self._next(kind="name")
            if kind not in ("query", "mutation"):
                raise Invalid(f"the query has the operation {kind!r}, which is not served")
            if self._peek()[0] == "name":
                self._next(kind="name")
            if self._took("("):
                self._definitions()
        return kind, self._selection(0)

    def _definitions(self) -> None:
        while not self._took(")"):
            self._next(text="$")
            name = self._next(kind="name")
            while self._peek()[1] in ("[", "]", "!", ":") or self._peek()[0] == "name":
                self._at += 1
            if self._took("="):
                self._variables.setdefault(name, self._value(0))

    def _fragment(self) -> None:
        self._next(text="fragment")
        name = self._next(kind="name")
        self._next(text="on")
        self._next(kind="name")
        self._fragments[name] = self._selection(0)

    def _selection(self, depth: int) -> list[Field | str]:
        if depth > _DEEPEST:
            raise Invalid("the query is nested too deeply")
        self._next(text="{")
        fields: list[Any] = []
        while not self._took("}"):
            if self._took("..."):
                fields += self._spread(depth)
            else:
                fields.append(self._field(depth))
        return fields

    def _spread(self, depth: int) -> list[Field | str]:
        if self._took("on"):
            self._next(kind="name")
            return self._selection(depth + 1)
        if self._peek()[1] == "{":
            return self._selection(depth + 1)
        return [self._next(kind="name")]

    def _field(self, depth: int) -> Field:
        name = key = self._next(kind="name")
        if self._took(":"):
            name = self._next(kind="name")
        arguments = {}
        if self._took("("):
            while not self._took(")"):
                argument = self._next(kind="name")
                self._next(text=":")
                arguments[argument] = self._value(0)
        selection = self._selection(depth + 1) if self._peek()[1] == "{" else []
        return Field(name, key, arguments, tuple(selection))  # type: ignore[arg-type] # spreads until _filled

    def _value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise Invalid("the query is nested too deeply")
        kind, text = self._peek()
        self._at += 1
        if kind == "string":
            return re.sub(r"\\(.)", r"\1", text[1:-1])
        if kind == "number":
            return float(text) if re.search("[.eE]", text) else int(text)
        if kind == "name":
            return {"true": True, "false": False, "null": None}.get(text, text)
        if text == "$":
            return self._variables.get(self._next(kind="name"))
        if text == "[":
            values = []
            while not self._took("]"):
                values.append(self._value(depth + 1))
            return values
        if text == "{":
            members = {}
            while not self._took("}"):
                name = self._next(kind="name")
                self._next(text=":")
                members[name] = self._value(depth + 1)
            return members
        raise Invalid(f"the query has {text or 'its end'!r} where a value belongs")

    def _filled(self, selection: Any, depth: int) -> tuple[Field, ...]:
        """A selection with its fragments in place. Counting fields ends fragments that hold each other many times, depth
        those that hold themselves."""
        if depth > _DEEPEST:
            raise Invalid("the query is nested too deeply")
        fields: list[Field] = []
        for part in selection:
            self._fields += 1
            if self._fields > _MOST_FIELDS:
                raise Invalid("the query asks for too many fields")
            if isinstance(part, str):
                if part not in self._fragments:
                    raise Invalid(f"the query has no fragment {part!r}")
                fields += self._filled(self._fragments[part], depth + 1)
            else:
                fields.append(Field(part.name, part.key, part.arguments, self._filled(part.selection, depth + 1)))
        return tuple(fields)
