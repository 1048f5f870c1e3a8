"""Requests for machines that live on other hosts of the fleet: passed on to them, and lists put together from all of them.

A host that is not reached says nothing, so others say what it told last: a machine of it is shown as unreachable, and changes
nothing until its host is back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, Final

import msgspec
from aiohttp import web

from castoff.agent.fleet.last_known import is_asked_for, last_known
from castoff.agent.fleet.outward import HERE, Outward
from castoff.api import body
from castoff.api.answer import json_answer
from castoff.api.auth import Grant, grant_of, is_local
from castoff.api.routes.paging import merged
from castoff.errors import CastoffError, NotFound, Unavailable
from castoff.fleet.connection import Connection
from castoff.fleet.members import Members
from castoff.fleet.record import HostRecord
from castoff.fleet.roster import MachineRow, Roster
from castoff.lifecycle.machines import Machines

__all__ = ["Elsewhere"]

_ALL: Final = "/v1/apps/{app}/machines"
_ONE: Final = "/v1/apps/{app}/machines/{id}"
_ORGANIZATION: Final = "/v1/orgs/{org}/machines"
_WHO: Final = 0.25
"""Seconds in which a host says that it has a machine of which no list tells yet."""
_LIST: Final = 2.0
"""Seconds that a host has for its part of a list."""
_LONG: Final = 2 * 3600.0
"""Seconds for which a host that is alive may say nothing while a command runs in a machine, or its logs are followed."""
_USUAL: Final = 90.0
_LASTING: Final = ("exec", "logs", "files", "stop", "restart", "ports")
_LOOK: Final = 2.0

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Elsewhere:
    """The middleware. Made by :meth:`open`.

    Args:
        members: The hosts that are alive.
        roster: Which machines each has.
        outward: The way to their agents.
        connection: The way to ask all of them who has a machine.
        machines: This host's own.
    """

    def __init__(self, members: Members, roster: Roster, outward: Outward, connection: Connection, machines: Machines) -> None:
        self._members = members
        self._roster = roster
        self._outward = outward
        self._connection = connection
        self._machines = machines
        self._known: dict[str, HostRecord] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, members: Members, roster: Roster, outward: Outward, connection: Connection, machines: Machines
    ) -> AsyncIterator[Elsewhere]:
        """Says for the block which machines are here, and asks others for theirs."""
        elsewhere = cls(members, roster, outward, connection, machines)
        await connection.serve(connection.subject("machine"), elsewhere._answer)
        yield elsewhere

    def add(self, app: web.Application) -> None:
        """Puts it before the routes."""

        @web.middleware
        async def passed(request: web.Request, handler: _Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            path = "" if resource is None else resource.canonical
            if is_local(request) and HERE in request.headers:
                return await handler(request)
            if path == _ONE or path.startswith(f"{_ONE}/"):
                return await self._one(request, handler)
            if request.method == "GET" and path == _ALL:
                return await self._of_app(request, handler)
            if request.method == "GET" and path == _ORGANIZATION:
                return await self._of_organization(request, handler)
            return await handler(request)

        app.middlewares.append(passed)

    # --- one machine -----------------------------------------------------------------------------------------------------

    async def _one(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        app, machine = request.match_info["app"], request.match_info["id"]
        with contextlib.suppress(NotFound):
            self._machines.get(None, machine)
            return await handler(request)
        host = self._roster.find(machine) or await self._who_has(app, machine)
        if host is None:
            return await handler(request)
        record = self._reach(host)
        row = self._roster.row(machine)
        shown = row if row is not None and row.app == app and _shows(request) else None
        try:
            if record is None:
                raise Unavailable(f"the host of machine {machine} is not reached", hint="the machine is there when its host is")
            lasting = request.path.partition(f"/machines/{machine}/")[2].partition("/")[0] in _LASTING
            work = self._outward.forward(request, record, patience=_LONG if lasting else _USUAL)
            return await self._while_alive(record, work)
        except Unavailable:
            if shown is None:
                raise
            return json_answer(last_known(shown))

    async def _who_has(self, app: str, machine: str) -> str | None:
        """Asks all hosts; one that has just made it has perhaps not told of it yet."""
        if len(machine) != 14 or not set(machine) <= set("0123456789abcdef"):
            return None
        with contextlib.suppress(CastoffError):
            answers = self._connection.ask_all(self._connection.subject("machine"), machine.encode(), within=_WHO)
            async with aclosing(answers):
                async for data in answers:
                    host = data[:16].decode("ascii", "replace")
                    if host != self._members.own and self._members.find(host) is not None:
                        self._roster.expect(machine, app, host)
                        return host
        return None

    async def _answer(self, data: bytes) -> bytes | None:
        with contextlib.suppress(NotFound):
            self._machines.get(None, data[:14].decode("ascii", "replace"))
            return self._members.own.encode()
        return None

    def _reach(self, host: str) -> HostRecord | None:
        """Where a host is; while this one is cut off from NATS, where it was: that is not cut off from one another."""
        self._known |= {member.record.id: member.record for member in self._members.alive()}
        return self._members.find(host) or (self._known.get(host) if self._members.is_cut_off else None)

    async def _while_alive(self, host: HostRecord, work: Coroutine[Any, Any, web.StreamResponse]) -> web.StreamResponse:
        """What a host answers; a host that dies without a word is not waited for."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK))[0]:
                if not self._members.is_cut_off and self._members.find(host.id) is None:
                    raise Unavailable(f"host {host.name} went away before it answered", hint="ask again")
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # --- lists -----------------------------------------------------------------------------------------------------------

    async def _of_app(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        there = self._roster.of_app(request.match_info["app"])
        if not there:
            return await handler(request)
        asking = asyncio.create_task(self._ask(request, there))
        try:
            own = await _own(request, handler)
            if isinstance(own, web.StreamResponse):
                return own
            answers = await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        summary = body.flag(request, "summary")
        found = {machine["id"]: machine for machine in own or ()}
        for host, rows in there.items():
            answer = answers[host]
            if answer is None:
                for row in rows:
                    if is_asked_for(request, row):
                        found.setdefault(row.id, last_known(row, summary=summary))
            elif isinstance(answer, list):
                for machine in answer:
                    found.setdefault(machine["id"], machine)
        return json_answer(sorted(found.values(), key=lambda machine: (machine["created_at"], machine["id"])))

    async def _of_organization(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        silent = self._roster.by_host()
        hosts = {member.record.id for member in self._members.alive()} | silent.keys()
        hosts.discard(self._members.own)
        own = await _own(request, handler)
        if isinstance(own, web.StreamResponse) or not hosts:
            return own if isinstance(own, web.StreamResponse) else json_answer(own)
        answers = await self._ask(request, hosts)
        regions = {
            row.region
            for host, rows in silent.items()
            if answers.get(host) is None
            for row in rows
            if _may_see(grant_of(request), row)
        }
        pages = [own, *(answer for answer in answers.values() if isinstance(answer, dict))]
        return json_answer({**merged(request, pages), "error_regions": sorted(regions)})

    async def _ask(self, request: web.Request, hosts: Iterable[str]) -> dict[str, Any]:
        """What each host answers to the same request; None: it is not reached."""
        names = list(hosts)
        return dict(zip(names, await asyncio.gather(*(self._ask_one(request, name) for name in names)), strict=True))

    async def _ask_one(self, request: web.Request, host: str) -> Any:
        record = self._reach(host)
        if record is None:
            return None
        try:
            async with asyncio.timeout(_LIST):
                return await self._outward.ask(record, grant_of(request), "GET", request.path_qs, patience=_LIST)
        except NotFound:
            return ()  # the app is not there any more
        except (Unavailable, TimeoutError, msgspec.DecodeError):
            return None


async def _own(request: web.Request, handler: _Handler) -> Any:
    """This host's own answer, decoded; None where it does not know the app, the answer itself where it is none to be joined."""
    try:
        answer = await handler(request)
    except NotFound:
        if "org" in request.match_info:
            raise
        return None
    if not isinstance(answer, web.Response) or answer.status != 200 or not isinstance(answer.body, bytes):
        return answer
    return msgspec.json.decode(answer.body)


def _shows(request: web.Request) -> bool:
    resource = request.match_info.route.resource
    return request.method == "GET" and resource is not None and resource.canonical == _ONE


def _may_see(grant: Grant, row: MachineRow) -> bool:
    return grant.app in (None, row.app)
