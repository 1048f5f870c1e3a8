"""Logs of a whole app, a page at a time, as ``flyctl logs`` asks for them: the lines of its machines in the order of their times.

A page's token says where it ended: the time of its last line, and how many lines of that time were given. Lines of the last
moment wait for the next page, as another machine may still be writing one of the same time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web

from castoff.agent.launch.logs import LogLine, Logs
from castoff.api.answer import json_answer, moment
from castoff.api.parts import PARTS
from castoff.api.server import Register
from castoff.errors import Invalid
from castoff.lifecycle.ids import milliseconds

__all__ = ["app_log_routes"]

_PATH: Final = "/api/v1/apps/{app}/logs"
_FIRST: Final = 100
"""Lines of a first page, the newest."""
_PAGE: Final = 1000
_SETTLES: Final = 50
"""Milliseconds after which no line of a time is still to come."""
_POLL: Final = 0.2
_HELD: Final = 5
"""Times that an empty page is looked for again before it is given: flyctl, which got one, comes again eight times a second."""
_TOKEN: Final = re.compile(r"([0-9]{1,15})-([0-9]{1,9})\Z")

_MOST_AT_ONCE: Final = 1_000_000
"""Lines of one time, of which a log has not so many."""

_Place = tuple[int, int]
"""A time, and how many lines of it were given."""
_Line = tuple[str, LogLine]
"""A machine's id, and what it wrote."""


def app_log_routes(logs: Logs) -> Register:
    """``GET /api/v1/apps/{app}/logs?next_token=TOKEN&instance=ID&region=CODE``."""

    async def read(request: web.Request) -> web.Response:
        parts = request.app[PARTS]
        app = parts.apps.get(request.match_info["app"])
        wanted = request.query.get("instance")
        machines = [parts.machines.get(app.name, wanted)] if wanted else parts.machines.list(app.name)
        region = request.query.get("region") or None
        ids = [machine.id for machine in machines if region in (None, machine.region)]
        place = _place(request.query.get("next_token", ""))
        found = await asyncio.to_thread(_page, logs, ids, place)
        for _ in range(_HELD):
            if found or request.transport is None or request.transport.is_closing():
                break
            await asyncio.sleep(_POLL)
            found = await asyncio.to_thread(_page, logs, ids, place)
        if found:
            place = await asyncio.to_thread(_end, logs, ids, place, found)
        lines = [_document(id, line, parts.settings.region) for id, line in found]
        return json_answer({"data": lines, "meta": {"next_token": f"{place[0]}-{place[1]}" if place[0] else ""}})

    def add(app: web.Application) -> None:
        app.router.add_get(_PATH, read)

    return add


def _place(token: str) -> _Place:
    """Where the page before ended."""
    if not token:
        return 0, 0
    match = _TOKEN.match(token)
    if match is None:
        raise Invalid("query: next_token is none that this server gave")
    return int(match[1]), int(match[2])


def _page(logs: Logs, machines: Sequence[str], place: _Place) -> Sequence[_Line]:
    """What comes behind a place, in the order of times, then of machines; the newest lines where it is none."""
    since, given = place
    until = milliseconds() - _SETTLES
    lines = [
        (line.timestamp, number, machine, line)
        for number, machine in enumerate(sorted(machines))
        for line in (logs.since(machine, since, most=given + _PAGE) if since else logs.tail(machine, _FIRST))
        if line.timestamp <= until
    ]
    lines.sort(key=lambda found: found[:2])
    rest = lines[min(given, sum(found[0] == since for found in lines)) :][:_PAGE] if since else lines[-_FIRST:]
    return [(machine, line) for _, _, machine, line in rest]


def _end(logs: Logs, machines: Sequence[str], place: _Place, page: Sequence[_Line]) -> _Place:
    """Where a page ends that came behind ``place``."""
    last = page[-1][1].timestamp
    if not place[0]:  # it has the end of the log, and maybe not all lines of that time
        return last, sum(line.timestamp == last for id in machines for line in logs.since(id, last, most=_MOST_AT_ONCE))
    return last, sum(line.timestamp == last for _, line in page) + (place[1] if last == place[0] else 0)


def _document(machine: str, line: LogLine, region: str) -> dict[str, Any]:
    return {
        "id": f"{line.timestamp}-{machine}",
        "type": "log",
        "attributes": {
            "timestamp": moment(line.timestamp),
            "message": line.message,
            "level": "info",
            "instance": machine,
            "region": region,
            "meta": {"instance": machine, "region": region, "event": {"provider": "app"}},
        },
    }
