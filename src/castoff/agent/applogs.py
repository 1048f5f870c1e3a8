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


def app_log_routes(logs: Logs) -> Register:
    """``GET /api/v1/apps/{app}/logs?next_token=TOKEN&instance=ID&region=CODE``."""

    async def read(request: web.Request) -> web.Response:
        parts = request.app[PARTS]
        app = parts.apps.get(request.match_info["app"])
        wanted = request.query.get("instance")
        machines = [parts.machines.get(app.name, wanted)] if wanted else parts.machines.list(app.name)
        region = request.query.get("region") or None
        ids = [machine.id for machine in machines if region in (None, machine.region)]
        since, given = _place(request.query.get("next_token", ""))
        found = await asyncio.to_thread(_page, logs, ids, since, given)
        for _ in range(_HELD):
            if found or request.transport is None or request.transport.is_closing():
                break
            await asyncio.sleep(_POLL)
            found = await asyncio.to_thread(_page, logs, ids, since, given)
        if found:
            last = found[-1][1].timestamp
            same = sum(line.timestamp == last for _, line in found)
            since, given = last, same + (given if last == since else 0)
        token = f"{since}-{given}" if since else ""
        return json_answer(
            {"data": [_document(id, line, parts.settings.region) for id, line in found], "meta": {"next_token": token}}
        )

    def add(app: web.Application) -> None:
        app.router.add_get(_PATH, read)

    return add


def _place(token: str) -> tuple[int, int]:
    """The time, and the lines of that time that were given already."""
    if not token:
        return 0, 0
    match = _TOKEN.match(token)
    if match is None:
        raise Invalid("query: next_token is none that this server gave")
    return int(match[1]), int(match[2])


def _page(logs: Logs, machines: Sequence[str], since: int, given: int) -> Sequence[tuple[str, LogLine]]:
    """In the order of times, then of machines: what comes after the first ``given`` lines of the time ``since``."""
    until = milliseconds() - _SETTLES
    lines = [
        (line.timestamp, number, machine, line)
        for number, machine in enumerate(sorted(machines))
        for line in (logs.since(machine, since, most=given + _PAGE) if since else logs.tail(machine, _FIRST))
        if line.timestamp <= until
    ]
    lines.sort(key=lambda found: found[:2])
    same = min(given, sum(found[0] == since for found in lines))
    rest = lines[same:][:_PAGE] if since else lines[-_FIRST:]
    return [(machine, line) for _, _, machine, line in rest]


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
