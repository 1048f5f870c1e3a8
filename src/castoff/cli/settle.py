"""What became of a machine that was told to do something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castoff.errors import Invalid, NotFound

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["particulars", "reaches"]

_WAIT = "60"
"""Seconds of one request: the API's own limit. There is no other; a large image takes its time."""


async def reaches(client: ApiClient, app: str, machine: str, *states: str) -> None:
    """Waits until a machine has settled, which shall be in one of ``states``.

    One whose command ended soon after it started has been started.

    Raises:
        Invalid: It is in another; the message has the reason that its events give.
    """
    now = await _settled(client, f"/v1/apps/{app}/machines/{machine}")
    if now["state"] in states:
        return
    exit = next((event for event in now["events"] if event["type"] == "exit"), None)
    ended = exit is not None and "exit_event" in (exit.get("request") or {})
    if "started" in states and ended and now["state"] in ("stopped", "destroyed"):
        return
    why = next((text for event in now["events"][:2] if (text := particulars(event.get("request") or {}))), "")
    raise Invalid(
        f"machine {machine} is {now['state']}{why and ': '}{why}", hint=f"`castoff machine events {machine}` tells more"
    )


def particulars(request: dict[str, Any]) -> str:
    """What an event says beyond its name, for people."""
    if exit := request.get("exit_event"):
        oom = ", out of memory" if exit.get("oom_killed") else ""
        return f"exit code {exit.get('exit_code')}{oom}{', ' + exit['error'] if exit.get('error') else ''}"
    return str(request.get("error", ""))


async def _settled(client: ApiClient, path: str) -> dict[str, Any]:
    from castoff.lifecycle.model import WaitTimeout

    while True:
        try:
            waited = await client.ask("GET", f"{path}/wait", query={"state": "settled", "timeout": _WAIT})
            return dict(await client.ask("GET", path), state=waited["state"])  # it may restart meanwhile
        except WaitTimeout:
            continue
        except NotFound:
            return {"state": "destroyed", "events": []}
