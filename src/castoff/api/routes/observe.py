"""What becomes of a machine: wait, events, versions."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from castoff.api import body
from castoff.api.answer import json_answer
from castoff.api.errors import Refusal
from castoff.api.parts import PARTS
from castoff.api.wire.machine import event_document
from castoff.errors import Invalid
from castoff.lifecycle.model import Machine, WaitTimeout
from castoff.lifecycle.states import SETTLED, State

__all__ = ["ROUTES"]

_ONE: Final = "/v1/apps/{app}/machines/{id}"
_WAIT_SECONDS: Final = 60
_LONGEST_WAIT: Final = 60
_EVENTS: Final = 20
_MOST_EVENTS: Final = 50
_AWAITED: Final = {state.value: frozenset({state}) for state in State} | {"settled": SETTLED}


async def wait(request: web.Request) -> web.Response:
    """GET /machines/{id}/wait."""
    app, id = request.match_info["app"], request.match_info["id"]
    words = body.words(request, "state") or ("started",)
    for word in words:
        if word not in _AWAITED:
            raise Invalid(f"query: state {word[:32]!r} is none", hint=f"they are {', '.join(_AWAITED)}")
    machines = request.app[PARTS].machines
    states = frozenset[State]().union(*(_AWAITED[word] for word in words))
    ends = {State.FAILED} if states == {State.STARTED} else set()
    try:
        waited = await machines.wait(
            app,
            id,
            states=states | ends,
            version=request.query.get("version") or request.query.get("instance_id") or None,
            from_event_id=request.query.get("from_event_id") or None,
            timeout=float(_seconds(request)),
        )
    except WaitTimeout as error:
        raise Refusal(_timeout_text(str(error), words), http=408, word="deadline_exceeded") from error
    if waited.state in ends:
        raise Invalid(f"machine {id} failed to start: {_failure(machines.get(app, id))}", hint="mend that, and start it again")
    return json_answer({"ok": True, "state": waited.state.value, "version": waited.version, "event_id": waited.event_id})


def _failure(machine: Machine) -> str:
    """Why a machine failed. It will not start by itself, so whoever waits for that is told at once: at any status but 400 flyctl
    asks again, for five minutes, and says nothing of it."""
    reasons = (event.request["error"] for event in machine.events if event.request and "error" in event.request)
    return str(next(reasons, "its events say more"))


def _seconds(request: web.Request) -> int:
    """The query's ``timeout``: seconds; also as a Go duration, which S's successors show."""
    text = request.query.get("timeout", "")
    if text.endswith("s") and text[:-1].isascii() and text[:-1].isdigit():
        text = text[:-1]
    if not text:
        return _WAIT_SECONDS
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= _LONGEST_WAIT):
        raise Invalid(f"query: timeout is not a number of seconds from 1 to {_LONGEST_WAIT}")
    return int(text)


def _timeout_text(now: str, words: tuple[str, ...]) -> str:
    """Fly's own words are "machine failed to reach desired state": flyctl's restart crashes on them, so they are not said."""
    return f"deadline_exceeded: timeout while waiting for {', '.join(words)}: {now}"


async def events(request: web.Request) -> web.Response:
    """GET /machines/{id}/events, newest first."""
    app, id = request.match_info["app"], request.match_info["id"]
    limit = body.number(request, "limit", default=_EVENTS, least=1, most=1_000_000)
    found = request.app[PARTS].machines.events(app, id, min(limit, _MOST_EVENTS))
    return json_answer([event_document(event) for event in found])


async def versions(request: web.Request) -> web.Response:
    """GET /machines/{id}/versions, newest first."""
    app, id = request.match_info["app"], request.match_info["id"]
    found = await request.app[PARTS].machines.versions(app, id)
    return json_answer([{"version": version, "user_config": document} for version, document in found])


ROUTES: Final = (
    web.get(f"{_ONE}/wait", wait),
    web.get(f"{_ONE}/events", events),
    web.get(f"{_ONE}/versions", versions),
)
