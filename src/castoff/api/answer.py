"""Answers. Wherever Fly's client decodes one, an empty body is an error to it; so there is none but with 204."""

from __future__ import annotations

from datetime import UTC, datetime
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
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
