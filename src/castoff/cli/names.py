"""Completes names of what is here: root filesystems, machines, volumes, keys. What cannot be read completes to nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from castoff.cli.globals import Globals
from castoff.cli.remote import agent_socket, reachable
from castoff.errors import CastoffError

__all__ = ["machine_names", "rootfs_names", "trusted_keys", "volume_names"]

_TAB: Final = 0.5
"""Seconds that a TAB may take."""
_MOST: Final = 4 << 20
"""Bytes of an answer that are read for one."""


def rootfs_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the store's root filesystems."""
    return [name for name in _entries(context, "rootfs") if name.startswith(incomplete)]


def machine_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the machines, and the names of the agent's, where one answers at once."""
    found = {*_entries(context, "machines"), *_agents_machines(context)}
    return sorted(name for name in found if name.startswith(incomplete))


def volume_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the volumes."""
    return [name for name in _entries(context, "volumes") if name.startswith(incomplete)]


def trusted_keys(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names and fingerprints of the keys that were added to those that this host trusts."""
    from castoff.artifact.trust import load_trust

    try:
        keys = [known for known in load_trust(context.ensure_object(Globals).load().state).keys if not known.own]
    except (CastoffError, OSError):
        return []
    words = [word for known in keys for word in (known.name, known.key.fingerprint)]
    return [word for word in words if word and word.startswith(incomplete)]


def _agents_machines(context: click.Context) -> list[str]:
    """Asks this host's agent with the standard library alone: a TAB waits neither for aiohttp's import nor for a busy agent."""
    import http.client  # here, and not for commands that complete nothing
    import json
    import socket

    try:
        config = context.ensure_object(Globals).load()
        with reachable(agent_socket(config.state)) as path, socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(_TAB)
            agent.connect(str(path))
            asking = http.client.HTTPConnection("agent")
            asking.sock = agent
            asking.request("GET", f"/v1/orgs/{config.agent.organization}/machines?summary=true")
            answer = json.loads(asking.getresponse().read(_MOST))
            return [str(word) for machine in answer["machines"] for word in (machine["id"], machine["name"])]
    except (CastoffError, OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return []


def _entries(context: click.Context, area: str) -> list[str]:
    """Looks without opening the store: a TAB must not make or mount one."""
    try:
        state: Path = context.ensure_object(Globals).load().state
        return sorted(entry.name for entry in (state / "store" / area).iterdir() if not entry.name.startswith("."))
    except (CastoffError, OSError):
        return []
