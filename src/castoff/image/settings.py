"""Settings of where images come from and how patiently they are fetched."""

from __future__ import annotations

import msgspec

__all__ = ["ImageSettings"]


class ImageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How images are found and fetched."""

    mirrors: dict[str, tuple[str, ...]] = {}
    """Registry host -> mirrors, asked in order before the registry itself: ``HOST[:PORT][/PREFIX]``, or with ``https://``
    or ``http://`` before it (plain HTTP is then allowed for that mirror)."""
    insecure_registries: tuple[str, ...] = ()
    """Hosts (``HOST[:PORT]``) that are spoken to in plain HTTP. Loopback needs no entry."""
    ca_file: str | None = None
    """A PEM file of further certificate authorities, trusted besides the system's."""
    docker_config: str | None = None
    """Docker's configuration file with credentials; by default ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``."""
    connect_timeout: float = 10.0
    """Seconds until a connection (name look-up, TCP, TLS) must stand."""
    read_timeout: float = 30.0
    """Seconds of silence after which a transfer counts as broken and is resumed."""
    helper_timeout: float = 30.0
    """Seconds that a credential helper may take."""
    retries: int = 5
    """Tries after the first, of a request or a resumed transfer, before giving up; progress of a MiB starts the count anew."""
    retry_delay: float = 0.25
    """Seconds: the ceiling of the first random delay; it doubles with each try."""
    retry_delay_limit: float = 15.0
    """Seconds: the most that is waited between two tries, also when a registry's Retry-After asks for more."""
    max_manifest_size: int = 4 << 20
    """Bytes: the largest manifest, index or image config that is read (distribution's own limit is 4 MiB)."""
    max_archive_size: int = 64 << 30
    """Bytes: the most that a compressed archive may decompress to (plain archives are read in place)."""
    cache_size: int = 256 << 20
    """Bytes of manifests and configs kept on disk; the least recently used go first."""
