"""Settings of the fleet: where hosts meet, and what they say of themselves."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from castoff.errors import Invalid

__all__ = ["FleetSettings", "check_fleet", "subject_word"]

_SCHEMES = ("nats", "tls")


class FleetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fleet that this host is of. Off as long as ``urls`` is empty. ``agent.region`` says in which region it is."""

    urls: tuple[str, ...] = ()
    """NATS servers with JetStream: ``nats://HOST:PORT``, or ``tls://``; any of one cluster, in any order. Beyond loopback they
    demand TLS (``tls://`` or ``authority``), and one of ``credentials``, ``nkey`` and ``certificate``."""
    name: str = "castoff"
    """The fleet's name, letters, digits and dashes: fleets of different names see nothing of one another on one NATS."""
    host: str = ""
    """This host's name, for people; empty: its hostname."""
    zone: str = ""
    """Where in its region this host is: hosts of one zone are asked for data before others of the region."""
    labels: dict[str, str] = {}
    """What orders choose hosts by, ``disk = "nvme"``."""
    authority: Path | None = None
    """PEM file with the certificate authorities of the NATS servers; unset: the system's."""
    certificate: Path | None = None
    """PEM file with this host's certificate for NATS servers that demand one."""
    key: Path | None = None
    """PEM file with its key."""
    credentials: Path | None = None
    """File with a user's JWT and seed (``.creds``)."""
    nkey: Path | None = None
    """File with the seed of an NKey."""
    cpu_share: Annotated[float, msgspec.Meta(ge=1.0, le=64.0)] = 4.0
    """How many processors of machines share one of this host's, where it says that it has room. Memory is not shared."""
    tags: Annotated[float, msgspec.Meta(ge=1.0)] = 30.0
    """Seconds between two looks at a tag that a standing order names; one host looks for all."""
    replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    """Servers of the cluster that keep each of the fleet's records; 3 where there are three."""

    @property
    def is_used(self) -> bool:
        """Whether this host is of a fleet."""
        return bool(self.urls)

    @property
    def host_name(self) -> str:
        """This host's name."""
        return self.host or socket.gethostname()


def check_fleet(settings: FleetSettings) -> None:
    """Looks at what can be wrong with the settings by themselves.

    Raises:
        Invalid: No way in, or one on which strangers could listen or come along.
    """
    if not settings.name.replace("-", "").isalnum() or not settings.name.isascii() or len(settings.name) > 40:
        raise Invalid(f"fleet.name {settings.name[:80]!r} is none: at most 40 letters, digits and dashes")
    if (settings.certificate is None) != (settings.key is None):
        raise Invalid("fleet.certificate and fleet.key belong together", hint="set both, or none")
    proven = settings.credentials or settings.nkey or settings.certificate
    for url in settings.urls:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise Invalid(f"fleet.urls: {url[:200]!r} is no URL of a NATS server", hint="nats://HOST:PORT or tls://HOST:PORT")
        if _is_loopback(parts.hostname):
            continue
        if parts.scheme == "nats" and settings.authority is None:
            raise Invalid(
                f"fleet.urls: {url} is beyond loopback, and what hosts tell one another must not travel in the clear",
                hint="write tls:// or set fleet.authority",
            )
        if proven is None and not parts.username:
            raise Invalid(
                f"fleet.urls: {url} is beyond loopback, and nothing says who this host is",
                hint="set fleet.credentials, fleet.nkey, or fleet.certificate and fleet.key",
            )


def subject_word(text: str) -> str:
    """Any text as one word of a NATS subject, which dots, spaces and wildcards are not part of."""
    return text.encode().hex() or "-"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
