"""What is said of a machine whose host is not reached: what that host last told, as documents of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from castoff.api import body
from castoff.api.answer import moment
from castoff.api.routes.machines import states_of
from castoff.api.wire.image import image_reference
from castoff.fleet.roster import MachineRow
from castoff.lifecycle.states import ACTIVE

__all__ = ["is_asked_for", "last_known"]


def last_known(row: MachineRow, *, summary: bool = False) -> dict[str, Any]:
    """A machine as its host last told of it: without a configuration, with ``host_status`` unreachable.

    Args:
        row: What it told.
        summary: What ``?summary=true`` leaves, which has no place for the host's status.
    """
    document: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "region": row.region,
        "instance_id": row.version,
        "version": row.version,
        "private_ip": "",
        "created_at": moment(row.created),
        "updated_at": moment(row.updated),
        "image_ref": image_reference(row.image, ""),
        "cordoned": False,
    }
    if summary:
        return document
    incomplete: Mapping[str, Any] = {"init": {}, "image": row.image}
    return {**document, "incomplete_config": incomplete, "events": [], "checks": [], "host_status": "unreachable"}


def is_asked_for(request: web.Request, row: MachineRow) -> bool:
    """Whether a list that is asked for has a machine. Its metadata are not known, so it has none.

    Raises:
        Invalid: The query is broken.
    """
    states = states_of(request)
    deleted = request.query.get("include_deleted") == "" or body.flag(request, "include_deleted")
    return (
        (request.query.get("region") or row.region) == row.region
        and (not states or row.state in {state.value for state in states})
        and (deleted or row.state in {state.value for state in ACTIVE})
        and not any(key.startswith("metadata.") for key in request.query)
    )
