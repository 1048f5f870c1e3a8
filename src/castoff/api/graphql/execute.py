"""What a selection asks for, taken from a value: the answer has the client's aliases, and null where there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from castoff.api.graphql.document import Field

__all__ = ["Json", "Resolver", "select"]

Resolver = Callable[[Mapping[str, Any]], Coroutine[Any, Any, Any]]
"""A value that is made when it is asked for, from the field's arguments."""


@dataclass(frozen=True, slots=True)
class Json:
    """A value of the scalar type JSON: given out whole, and nothing of it can be selected."""

    value: Any


async def select(value: Any, selection: tuple[Field, ...]) -> Any:
    """The part of ``value`` that is asked for.

    Args:
        value: A mapping by field name, whose values may be resolvers; a list of such; None; or a scalar.
        selection: The fields; empty for a scalar.
    """
    if isinstance(value, Json):
        return value.value
    if value is None or not selection:
        return None if isinstance(value, Mapping) else value
    if isinstance(value, list):
        return [await select(member, selection) for member in value]
    if not isinstance(value, Mapping):
        return value
    answer: dict[str, Any] = {}
    for field in selection:
        found = value.get(field.name)
        if callable(found):
            found = await found(field.arguments)
        part = await select(found, field.selection)
        known = answer.get(field.key)
        answer[field.key] = {**known, **part} if isinstance(known, dict) and isinstance(part, dict) else part
    return answer
