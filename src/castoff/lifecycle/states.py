"""The states of a machine, and every way from one to another: the one table that allows a change of state.

Names and edges are the Machines API's. A transient state is written down before it is acted on, so whoever starts after a
crash knows what was under way, and finishes or undoes it. (`creating` and `launch_failed` are not needed here: a create is
written down in one transaction, and a first start that fails is a start that fails.) Lifecycle of a machine:

    create -> created -> starting -> started -> stopping -> stopped -> destroying -> destroyed
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final

from castoff.errors import Conflict

__all__ = ["ACTIVE", "SETTLED", "TRANSITIONS", "State", "check_transition"]


class State(enum.StrEnum):
    """How a machine is."""

    CREATED = "created"
    STARTING = "starting"
    STARTED = "started"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESTARTING = "restarting"
    REPLACING = "replacing"
    FAILED = "failed"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"


SETTLED: Final = frozenset({State.CREATED, State.STARTED, State.STOPPED, State.SUSPENDED, State.FAILED, State.DESTROYED})
"""States in which a machine stays until somebody asks, or its command ends."""

ACTIVE: Final = frozenset(State) - {State.DESTROYING, State.DESTROYED}
"""States of machines that are still there for clients."""

TRANSITIONS: Final = MappingProxyType(
    {
        State.CREATED: {State.STARTING, State.REPLACING, State.DESTROYING},
        State.STARTING: {State.STARTED, State.STOPPED, State.FAILED, State.DESTROYING},
        State.STARTED: {
            State.STOPPING,
            State.STOPPED,
            State.SUSPENDING,
            State.RESTARTING,
            State.REPLACING,
            State.FAILED,
            State.DESTROYING,
        },
        State.STOPPING: {State.STOPPED, State.DESTROYING},
        State.STOPPED: {State.STARTING, State.REPLACING, State.DESTROYING},
        State.SUSPENDING: {State.SUSPENDED, State.STARTED, State.STOPPED, State.DESTROYING},
        State.SUSPENDED: {State.STARTING, State.STOPPING, State.REPLACING, State.DESTROYING},
        State.RESTARTING: {State.STARTED, State.STOPPED, State.FAILED, State.STARTING, State.REPLACING, State.DESTROYING},
        State.REPLACING: {State.CREATED, State.STARTING, State.STOPPED, State.DESTROYING},
        State.FAILED: {State.STARTING, State.STOPPING, State.STOPPED, State.REPLACING, State.DESTROYING},
        State.DESTROYING: {State.DESTROYED},
        State.DESTROYED: set(),
    }
)
"""From a state, those that may follow."""


def check_transition(machine: str, state: State, wanted: State) -> None:
    """Lets a change of state through that the table has.

    Args:
        machine: Its id, for the message.
        state: How it is.
        wanted: How it shall be.

    Raises:
        Conflict: It has not.
    """
    if wanted not in TRANSITIONS[state]:
        raise Conflict(
            f"machine {machine} cannot become {wanted} from its current state: '{state}'", hint="wait until it has settled"
        )
