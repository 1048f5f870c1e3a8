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
    """Base URL of an OpenTelemetry collector, ``http://127.0.0.1:4318``: creates are sent there as traces. Empty: none are."""
    request_bytes: int = 8 * 1024 * 1024
    """Of one request's body; more is refused with 413. Files in a machine's configuration are part of it."""
    connections: int = 4096
    """Open connections of all clients of the port together, and as many of the unix socket; more are answered 503 and closed."""
    client_timeout: float = 30.0
    """Within which a client has to send a request whole once it began or connected, and to take what it was answered."""
    requests_per_second: float = 500.0
    """Of one client address over TCP, in the long run; more is answered 429. The unix socket has no limit."""
    request_burst: int = 2000
    """Requests that one client address may send at once."""
