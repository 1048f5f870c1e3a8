"""``castoff preload --hosts``: an order for hosts of the fleet in place of work on this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castoff.cli.exits import Exit
from castoff.cli.globals import Globals
from castoff.cli.orders import follow, verdict
from castoff.cli.remote import on_agent

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["give_order"]


def give_order(shared: Globals, order: dict[str, Any], *, detach: bool) -> int:
    """Gives an order, and follows it where its end is waited for; the exit code."""

    async def work(client: ApiClient) -> dict[str, Any]:
        given: dict[str, Any] = await client.ask("POST", "/v1/fleet/orders", body=order)
        if detach or given["keep"]:
            return given
        shared.note(f"order {given['id']} is given: it goes on without this command")
        return await follow(shared, client, given["id"])

    found = on_agent(shared, work)
    shared.answer(found, lambda: verdict(found))
    waited = not (detach or found["keep"])
    return Exit.NO if waited and not found["complete"] else Exit.OK
