"""Completes names of what is here: root filesystems, machines, volumes, keys. What cannot be read completes to nothing."""

from __future__ import annotations

from pathlib import Path

import click

from castoff.cli.globals import Globals
from castoff.errors import CastoffError

__all__ = ["machine_names", "rootfs_names", "trusted_keys", "volume_names"]


def rootfs_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the store's root filesystems."""
    return [name for name in _entries(context, "rootfs") if name.startswith(incomplete)]


def machine_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the machines."""
    return [name for name in _entries(context, "machines") if name.startswith(incomplete)]


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


def _entries(context: click.Context, area: str) -> list[str]:
    """Looks without opening the store: a TAB must not make or mount one."""
    try:
        state: Path = context.ensure_object(Globals).load().state
        return sorted(entry.name for entry in (state / "store" / area).iterdir() if not entry.name.startswith("."))
    except (CastoffError, OSError):
        return []
