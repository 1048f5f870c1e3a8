"""Bodies that clients send. Fields that are not here are passed over, as clients are newer or older than their server."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

__all__ = [
    "AppBody",
    "ExecBody",
    "ExtendBody",
    "LeaseBody",
    "MachineBody",
    "MetadataBody",
    "MetadataValueBody",
    "SecretBody",
    "SecretsBody",
    "SignalBody",
    "StopBody",
    "VolumeBody",
    "VolumeChange",
]

Name = Annotated[str, Meta(max_length=1024)]
_Seconds = Annotated[int, Meta(ge=0, le=2**31)]


class MachineBody(msgspec.Struct, frozen=True, kw_only=True):
    """To create a machine or to update one. ``config`` is kept as it was sent."""

    config: dict[str, Any]
    name: Name | None = None
    region: Name | None = None
    skip_launch: bool | None = None
    skip_service_registration: bool | None = None
    skip_secrets: bool | None = None
    min_secrets_version: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    lease_ttl: _Seconds | None = None
    current_version: Name | None = None


class StopBody(msgspec.Struct, frozen=True, kw_only=True):
    """fly-go always sends ``timeout``, as ``"0s"`` where none is meant."""

    signal: str | int | None = None
    timeout: str | int | float | None = None


class SignalBody(msgspec.Struct, frozen=True, kw_only=True):
    """The description has a name, fly-go sends a number."""

    signal: str | int


class ExecBody(msgspec.Struct, frozen=True, kw_only=True):
    """``cmd`` is one string, which is split into words as a shell would; ``command`` has the words."""

    cmd: str | None = None
    command: tuple[str, ...] | None = None
    stdin: str | None = None
    timeout: Annotated[int, Meta(ge=0, le=3600)] | None = None
    container: str | None = None
    machine: bool | None = None


class LeaseBody(msgspec.Struct, frozen=True, kw_only=True):
    """fly-go sends none, and ``?ttl=``."""

    ttl: _Seconds | None = None
    description: Name | None = None


class MetadataBody(msgspec.Struct, frozen=True, kw_only=True):
    """null and the empty string remove a key."""

    metadata: dict[str, str | None]
    machine_version: str | None = None


class MetadataValueBody(msgspec.Struct, frozen=True, kw_only=True):
    """One key's value."""

    value: str


class AppBody(msgspec.Struct, frozen=True, kw_only=True):
    """To make an app; older clients say ``app_name``."""

    name: Name | None = None
    app_name: Name | None = None
    org_slug: Name | None = None
    network: Name | None = None


class VolumeBody(msgspec.Struct, frozen=True, kw_only=True):
    """To make a volume. flyctl sends ``size_gb`` 0 where it means none."""

    name: Name
    size_gb: Annotated[int, Meta(ge=0, le=16 * 1024)] | None = None
    region: Name | None = None
    encrypted: bool | None = None
    fstype: Name | None = None
    snapshot_retention: Annotated[int, Meta(ge=1, le=60)] | None = None
    auto_backup_enabled: bool | None = None
    snapshot_id: Name | None = None
    source_volume_id: Name | None = None


class VolumeChange(msgspec.Struct, frozen=True, kw_only=True):
    """To change one."""

    snapshot_retention: Annotated[int, Meta(ge=1, le=60)] | None = None
    auto_backup_enabled: bool | None = None


class ExtendBody(msgspec.Struct, frozen=True, kw_only=True):
    """To make one larger."""

    size_gb: Annotated[int, Meta(ge=1, le=16 * 1024)]


class SecretsBody(msgspec.Struct, frozen=True, kw_only=True):
    """Several secrets; null removes one."""

    values: dict[str, str | None]


class SecretBody(msgspec.Struct, frozen=True, kw_only=True):
    """One secret."""

    value: str
