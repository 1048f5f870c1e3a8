"""What the agent knows of a machine, and what it is asked for. Times are Unix milliseconds.

Values are made of values, so no cycle goes through one, and the garbage collector is not shown them (``gc=False``): a machine
has up to fifty events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from castoff.errors import Conflict, Unavailable
from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.states import State
from castoff.machine.model import MachineId

__all__ = [
    "CHECK_EVENT",
    "Change",
    "CheckStatus",
    "CreateRequest",
    "Event",
    "Lease",
    "LeaseHeld",
    "Machine",
    "PreconditionFailed",
    "UpdateRequest",
    "WaitTimeout",
    "Waited",
]


CHECK_EVENT: Final = "check"
"""The type of an event that tells that a check's status changed; its ``status`` is that, no state."""


class PreconditionFailed(Conflict):
    """The machine is not what the client took it for."""

    http = 412


class LeaseHeld(Conflict):
    """Somebody else has the machine's lease."""


class WaitTimeout(Unavailable):
    """The machine did not get there in time."""


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Something that happened to a machine."""

    id: str
    """A ULID."""
    type: str
    """``launch``, ``start``, ``stop``, ``exit``, ..."""
    status: str
    """The state that followed; of a check, its status."""
    source: str
    """``user``, or ``flyd`` as clients know it: the agent itself."""
    timestamp: int
    request: dict[str, Any] | None = None
    """Particulars; of an exit ``exit_event``."""


class Lease(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A client's right to change a machine alone, for a time."""

    nonce: str
    owner: str
    description: str
    version: str
    """The machine's version when it was taken."""
    expires: int


class CheckStatus(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a health check found last: ``status`` is passing, warning or critical."""

    name: str
    status: str
    output: str
    updated: int


class Machine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A machine at one moment; what changes makes a new value."""

    id: MachineId
    app: str
    name: str
    region: str
    state: State
    version: str
    """A ULID, one a configuration; ``instance_id`` of the API."""
    digest: str
    """Of the image, when the version was made."""
    document: dict[str, Any]
    """The configuration as the client sent it."""
    config: MachineConfig
    """The same, typed."""
    cordoned: bool
    restarts: int
    """How often in a row the restart policy has started it."""
    wanted: State
    """Where it was going when its present state was written: STARTED, STOPPED, CREATED."""
    created: int
    updated: int
    started: int = 0
    """When its command was last started; 0: never."""
    address: str = ""
    """Its IPv4 address; empty: it has none of its own."""
    address6: str = ""
    """Its IPv6 address."""
    events: tuple[Event, ...] = ()
    """The last ones, newest first."""
    lease: Lease | None = None
    checks: tuple[CheckStatus, ...] = ()

    @property
    def metadata(self) -> Mapping[str, str]:
        """``config.metadata``."""
        return self.config.metadata or {}


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A machine to make."""

    document: dict[str, Any]
    config: MachineConfig
    name: str | None = None
    region: str | None = None
    skip_launch: bool = False
    skip_service_registration: bool = False
    lease_ttl: int | None = None
    """Seconds of a lease that comes with it."""
    min_secrets_version: int | None = None


class UpdateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's next version: the whole configuration."""

    document: dict[str, Any]
    config: MachineConfig
    current_version: str | None = None
    """The version that it replaces; another one is refused."""
    skip_launch: bool = False
    skip_service_registration: bool = False
    lease_ttl: int | None = None
    min_secrets_version: int | None = None


class Waited(msgspec.Struct, frozen=True, kw_only=True):
    """What was waited for."""

    state: State
    version: str
    event_id: str


class Change(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A machine changed, or is gone for good."""

    machine: Machine
    gone: bool = False
