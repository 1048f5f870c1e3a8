"""Settings of the agent."""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["AgentSettings"]


class AgentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The host's long-running service."""

    listen: str = "127.0.0.1:4280"
    """``ADDRESS:PORT`` of the Machines API; empty: only the unix socket ``STATE/agent/agent.sock``. An address beyond loopback
    demands ``tls_certificate`` and ``tls_key``."""
    tls_certificate: Path | None = None
    """PEM file with the certificate chain."""
    tls_key: Path | None = None
    """PEM file with its key."""
    region: str = "local"
    """The region that this host's machines say they are in."""
    organization: str = "personal"
    """Slug of the one organization that apps belong to."""
    rootfs_directories: tuple[Path, ...] = ()
    """Directories of prepared root filesystems that ``config.rootfs.file`` may name; none: it is refused."""
    hosts: tuple[str, ...] = ()
    """DNS names under which browsers may ask for the page and for ``/metrics``; addresses and ``localhost`` always may. Others
    are refused: a foreign page whose name was pointed at this host must not read it."""
    otlp_endpoint: str = ""
    """Base URL of an OpenTelemetry collector, ``http://127.0.0.1:4318``: every create is sent there as a trace. Empty: none is."""
