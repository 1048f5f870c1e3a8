"""A machine as it is when it is made."""

from __future__ import annotations

import msgspec

from castoff.lifecycle.board import Board
from castoff.lifecycle.ids import milliseconds
from castoff.lifecycle.leases import new_lease
from castoff.lifecycle.model import CreateRequest, Machine
from castoff.lifecycle.states import State
from castoff.machine.model import MachineId

__all__ = ["new_machine"]


def new_machine(
    board: Board,
    request: CreateRequest,
    *,
    id: MachineId,
    app: str,
    name: str,
    region: str,
    digest: str,
    addresses: tuple[str, str] = ("", ""),
) -> Machine:
    """A machine that is to start at once, or is only created, as ``request`` says; nothing is written down yet.

    Args:
        board: Makes its version and events.
        request: What was asked for.
        id: Its id.
        app: Its app.
        name: Its name.
        region: Where it is.
        digest: Of its image.
        addresses: Of IPv4 and of IPv6; empty: it has none.

    Raises:
        Invalid: Its lease cannot be so long.
    """
    now, version = milliseconds(), board.ulids.next()
    events = [board.event("launch", State.CREATED, "user")]
    state = State.CREATED if request.skip_launch else State.STARTING
    if state == State.STARTING:
        events.insert(0, board.event("start", State.STARTING, "user"))
    machine = Machine(
        id=id,
        app=app,
        name=name,
        region=region,
        state=state,
        version=version,
        digest=digest,
        document=request.document,
        config=request.config,
        cordoned=request.skip_service_registration,
        restarts=0,
        wanted=State.CREATED if request.skip_launch else State.STARTED,
        created=now,
        updated=now,
        address=addresses[0],
        address6=addresses[1],
        events=tuple(events),
    )
    if request.lease_ttl:
        lease = new_lease(machine, ttl=request.lease_ttl, owner="create", description="")
        machine = msgspec.structs.replace(machine, lease=lease)
    return machine
