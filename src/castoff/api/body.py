"""What a request says: its body and its query, typed; what is wrong with it is told by the field's name."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from castoff.api.errors import Refusal
from castoff.errors import Invalid
from castoff.lifecycle.durations import go_seconds

__all__ = ["CLIENT_TIMEOUT", "duration", "flag", "number", "read", "words"]

CLIENT_TIMEOUT: Final = web.AppKey("castoff.client_timeout", float)
"""Seconds that a client has for sending a body."""

T = TypeVar("T")

_LONGEST: Final = 100 * 365 * 86400.0
_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False", ""})


async def read(request: web.Request, kind: type[T]) -> T:
    """The body as a value of ``kind``; no body counts as ``{}``.

    Raises:
        Invalid: It is not JSON, or a field has another type; the message names it.
        Refusal: It is too large, or came too slowly.
    """
    try:
        if request.content.is_eof():  # it came with its head, as small ones do: there is nothing to wait for
            data = await request.read()
        else:
            async with asyncio.timeout(request.app[CLIENT_TIMEOUT]):
                data = await request.read()
    except TimeoutError:
        raise Refusal("the request's body did not arrive in time", http=408, word="deadline_exceeded") from None
    except web.HTTPRequestEntityTooLarge as error:
        raise Refusal(
            "the request's body is too large", http=413, word="too_large", hint="`agent.request_bytes` is the limit"
        ) from error
    return decode(data, kind)


def decode(data: bytes, kind: type[T]) -> T:
    """Bytes as a value of ``kind``; see :func:`read`."""
    try:
        return msgspec.json.decode(data.strip() or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"the request's body: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the request's body is not JSON: {error}") from error
    except RecursionError as error:
        raise Invalid("the request's body is nested too deeply") from error


def flag(request: web.Request, name: str) -> bool:
    """A boolean of the query, as Go reads one; False where it is absent."""
    text = request.query.get(name, "")
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise Invalid(f"query: {name} is not true or false")


def number(request: web.Request, name: str, *, default: int, least: int, most: int) -> int:
    """A whole number of the query.

    Raises:
        Invalid: It is none, or out of its range.
    """
    text = request.query.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise Invalid(f"query: {name} is not a whole number from {least} to {most}")
    return int(text)


def words(request: web.Request, name: str) -> tuple[str, ...]:
    """Values of the query, given several times or as a list with commas."""
    return tuple(word.strip() for text in request.query.getall(name, []) for word in text.split(",") if word.strip())


def duration(value: Any, name: str) -> float | None:
    """Seconds of a Go duration (``"1m30s"``), or of a number of nanoseconds; None for absent, empty and zero, which clients
    send when they mean none.

    Raises:
        Invalid: It is neither, or negative.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Invalid(f"{name} is not a duration like 10s")
    seconds = go_seconds(value) if isinstance(value, str) else value / 1e9
    if seconds is None or not 0 <= seconds <= _LONGEST:
        raise Invalid(f"{name} is not a duration like 10s")
    return seconds or None
