"""A long list in parts: sorted by when things last changed, so that a client which asks again sees only what is new."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

from aiohttp import web

from castoff.api import body
from castoff.errors import Invalid

__all__ = ["Page", "merged", "paged"]

T = TypeVar("T")
_MOST: Final = 1000
_DEFAULT: Final = 200


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Attributes:
    rows: What is on the page, oldest change first.
    cursor: Where the next one begins; empty on the last.
    """

    rows: list[T]
    cursor: str


def paged(request: web.Request, rows: Iterable[T], place: Callable[[T], tuple[int, str]]) -> Page[T]:
    """The page that the query's ``cursor``, ``limit`` and ``updated_after`` ask for.

    Args:
        place: A row's last change in Unix milliseconds, and its id.

    Raises:
        Invalid: A parameter is none.
    """
    limit = body.number(request, "limit", default=_DEFAULT, least=1, most=2**31)
    after = (_milliseconds(request.query.get("updated_after", "")), "\U0010ffff")
    if request.query.get("cursor"):
        after = max(after, _place_of(request.query["cursor"]))
    found = sorted((row for row in rows if place(row) > after), key=place)
    page = found[: min(limit, _MOST)]
    return Page(page, _cursor(place(page[-1])) if len(found) > len(page) else "")


def merged(request: web.Request, pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One page of machines of those that several hosts gave for one request.

    Args:
        request: Which each of them was asked.
        pages: Their answers.
    """
    found = {machine["id"]: machine for page in reversed(pages) for machine in page["machines"]}  # of two, the first host's
    page = paged(request, found.values(), _updated)
    cursor = page.cursor
    if page.rows and not cursor and any(one["next_cursor"] for one in pages):
        cursor = _cursor(_updated(page.rows[-1]))
    last = page.rows[-1] if page.rows else {"id": "", "updated_at": ""}
    return {
        "machines": page.rows,
        "next_cursor": cursor,
        "last_machine_id": last["id"],
        "last_updated_at": last["updated_at"],
    }


def _updated(machine: Mapping[str, Any]) -> tuple[int, str]:
    return _milliseconds(machine["updated_at"]), machine["id"]


def _cursor(place: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(f"{place[0]}:{place[1]}".encode()).decode().rstrip("=")


def _place_of(cursor: str) -> tuple[int, str]:
    try:
        text = base64.urlsafe_b64decode(cursor[:256] + "=" * (-len(cursor[:256]) % 4)).decode()
        moment, _, id = text.partition(":")
        return int(moment), id
    except (binascii.Error, ValueError) as error:
        raise Invalid("query: cursor is not one that was given here") from error


def _milliseconds(text: str) -> int:
    if not text:
        return -1
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Invalid("query: updated_after is not a time like 2026-01-31T12:00:00Z") from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
