"""A machine as JSON, the way that fly-go's machine_types.go reads it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from castoff.api.answer import moment
from castoff.api.wire.image import image_reference
from castoff.lifecycle.checks import check_statuses
from castoff.lifecycle.model import Event, Lease, Machine

__all__ = ["MachineViews", "event_document", "lease_envelope", "machine_document", "overview_document", "summary_document"]

_MOST_VIEWS: Final = 20_000


def machine_document(machine: Machine) -> dict[str, Any]:
    """The whole machine. ``host_status`` is always ok: flyctl refuses to work with machines of which it is not."""
    document = summary_document(machine)
    document["config"] = {"init": {}, **machine.document}
    document["events"] = [event_document(event) for event in machine.events]
    document["checks"] = [
        {"name": check.name, "status": check.status, "output": check.output, "updated_at": moment(check.updated)}
        for check in check_statuses(machine)
    ]
    document["host_status"] = "ok"
    return document


def summary_document(machine: Machine) -> dict[str, Any]:
    """What ``?summary=true`` leaves."""
    return {
        "id": machine.id,
        "name": machine.name,
        "state": machine.state.value,
        "region": machine.region,
        "instance_id": machine.version,
        "version": machine.version,
        "private_ip": machine.address6,
        "created_at": moment(machine.created),
        "updated_at": moment(machine.updated),
        "image_ref": image_reference(machine.config.image, machine.digest),
        "cordoned": machine.cordoned,
    }


def overview_document(machine: Machine, *, summary: bool) -> dict[str, Any]:
    """A machine in an organization's list."""
    document = {"app_name": machine.app, **summary_document(machine)}
    if not summary:
        document["config"] = {"init": {}, **machine.document}
    return document


def event_document(event: Event) -> dict[str, Any]:
    """An event; ``timestamp`` is in milliseconds."""
    document: dict[str, Any] = {
        "id": event.id,
        "type": event.type,
        "status": event.status,
        "source": event.source,
        "timestamp": event.timestamp,
    }
    if event.request:
        document["request"] = event.request
    return document


def lease_envelope(lease: Lease) -> dict[str, Any]:
    """A lease as fly-go reads it: the published description shows it flat, and a flat one crashes flyctl."""
    return {
        "status": "success",
        "data": {
            "nonce": lease.nonce,
            "expires_at": lease.expires // 1000,
            "owner": lease.owner,
            "description": lease.description,
            "version": lease.version,
        },
    }


class MachineViews:
    """Machines as JSON text, each encoded once: a list of a thousand is mostly the same as the one before."""

    def __init__(self) -> None:
        self._views: dict[str, tuple[Machine, msgspec.Raw]] = {}

    def view(self, machine: Machine) -> msgspec.Raw:
        """:func:`machine_document`, encoded."""
        known = self._views.get(machine.id)
        if known is not None and known[0] is machine:
            return known[1]
        view = msgspec.Raw(msgspec.json.encode(machine_document(machine)))
        if len(self._views) >= _MOST_VIEWS:
            self._views.clear()
        self._views[machine.id] = (machine, view)
        return view
