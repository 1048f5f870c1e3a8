"""One failure, as clients of the Machines API expect it: a status, and ``{"error", "status", "code", "message"?}``.

fly-go shows ``message`` where there is one and ``error`` otherwise, and flyctl looks for words in what it shows; so ``message``
is the whole text with its hint, and begins with ``error``.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import msgspec
from aiohttp import web

from castoff.api.auth import Forbidden
from castoff.errors import CastoffError, Code, Invalid, LimitExceeded, Unsupported

__all__ = ["NotServed", "Refusal", "error_answer", "error_document", "status_of"]

_STATUSES: Final = MappingProxyType(
    {
        Code.INVALID: 400,
        Code.NOT_FOUND: 404,
        Code.CONFLICT: 409,
        Code.UNAUTHORIZED: 401,
        Code.UNAVAILABLE: 503,
        Code.UNSUPPORTED: 501,
        Code.NO_SPACE: 507,
        Code.INTERNAL: 500,
    }
)


class Refusal(Invalid):
    """What only HTTP has a status for.

    Args:
        what: The text.
        http: The status code.
        word: The answer's ``code``.
        status: The answer's ``status``.
        retry_after: Seconds after which to try again; 0: no word about it.
    """

    def __init__(self, what: str, *, http: int, word: str, status: str = "unknown", retry_after: int = 0, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.http = http
        self.word = word
        self.status = status
        self.retry_after = retry_after


class NotServed(Unsupported):
    """A documented operation that this server has not."""


def status_of(error: CastoffError) -> int:
    """The HTTP status of a failure. One that carries ``http`` knows its own (a lifecycle's precondition is 412, say)."""
    own = getattr(error, "http", None)
    if isinstance(own, int):
        return own
    if isinstance(error, Forbidden):
        return 403
    if isinstance(error, LimitExceeded):
        return 413
    return _STATUSES[error.code]


def error_document(error: CastoffError) -> dict[str, Any]:
    """The answer's body."""
    document = {"error": error.what, "status": _status_word(error), "code": str(getattr(error, "word", error.code))}
    if error.hint:
        document["message"] = str(error)
    return document


def _status_word(error: CastoffError) -> str:
    """One of the few words that the description has: clients made from it know no others. ``code`` says more."""
    if error.code is Code.NO_SPACE:
        return "insufficient_capacity"  # flyctl tells its user to try another region
    status = getattr(error, "status", "unknown")
    return status if isinstance(status, str) else "unknown"


def error_answer(error: CastoffError) -> web.Response:
    """A failure as a response."""
    headers = {}
    retry_after = getattr(error, "retry_after", 0)
    if retry_after:
        headers["Retry-After"] = str(retry_after)
    if status_of(error) == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        body=msgspec.json.encode(error_document(error)),
        status=status_of(error),
        content_type="application/json",
        headers=headers,
    )
