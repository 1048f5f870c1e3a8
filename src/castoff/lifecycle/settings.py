"""Settings of the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

__all__ = ["AgentSettings", "NetworkSettings"]


class NetworkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The network of the agent's machines."""

    mode: Literal["user", "bridge"] = "user"
    """``user``: each is behind its VMM's own user network, and reaches out. ``bridge``, for root: each has addresses, and a tap
    on a bridge of this host; those of an app reach one another."""
    bridge: str = "castoff0"
    """The bridge's name, at most 15 letters, and that of castoff's nftables. Two agents of one host need two."""
    ipv4: str = "10.211.0.0/16"
    """The machines' addresses; the first is the host's. No other network of the host's may overlap it."""
    ipv6: str = "fdca:57f0:ff::/64"
    """The same of IPv6, and at least as many."""
    resolvers: tuple[str, ...] = ()
    """Name servers that are asked for names outside of ``.internal``; none: those of ``/etc/resolv.conf``."""
    refuse: tuple[str, ...] = ("169.254.0.0/16",)
    """IPv4 networks that machines cannot reach through this host: by default, where clouds keep their hosts' credentials."""
    publish: tuple[str, ...] = ()
    """IPv4 addresses of this host at which the TCP ports of ``config.services`` lead to their machine; none: no port does."""
    publish_from: int = 1024
    """The lowest port that a machine may publish; what is lower in its services has no effect."""


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
    network: NetworkSettings = NetworkSettings()
    """The network of the machines."""
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
