"""Answers. Wherever Fly's client decodes one, an empty body is an error to it; so there is none but with 204."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import msgspec
from aiohttp import web

__all__ = ["json_answer", "moment", "nothing", "ok"]

_ENCODER: Final = msgspec.json.Encoder()


def json_answer(value: Any, *, status: int = 200) -> web.Response:
    """A value as JSON."""
    return web.Response(body=_ENCODER.encode(value), status=status, content_type="application/json")


def ok() -> web.Response:
    """What there is to say about most requests."""
    return json_answer({"ok": True})


def nothing() -> web.Response:
    """204."""
    return web.Response(status=204)


def moment(milliseconds: int) -> str:
    """Unix milliseconds as RFC 3339 in UTC."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03}Z"


@lru_cache(4096)
def _second(seconds: int) -> str:
    """Most moments of an answer are of the same few seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
