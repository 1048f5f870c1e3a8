"""A machine's configuration, as the Machines API names it (MachineConfig of its OpenAPI description).

What a client sent is kept verbatim as JSON and given back so; this is the typed view of the fields that castoff acts on.
Fields that it does not know are kept and ignored, as clients are newer or older than their server. docs/compatibility.md
tells of every field: works, accepted and ignored, refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from castoff.disk.clone import CloneKind
from castoff.errors import Invalid
from castoff.rootfs.settings import Lazy
from castoff.vmm.rates import AskedRates

__all__ = [
    "Check",
    "CheckHeader",
    "EnvironmentFrom",
    "File",
    "Guest",
    "Init",
    "MachineConfig",
    "Mount",
    "Process",
    "ProcessSecret",
    "Restart",
    "RootfsConfig",
    "Service",
    "ServicePort",
    "StopConfig",
    "parse_config",
]

Duration = str | int | float
"""A Go duration, ``"10s"``, or a number of nanoseconds."""
_Port = Annotated[int, Meta(ge=1, le=65535)]


class Init(msgspec.Struct, frozen=True, kw_only=True):
    """Overrides of the image's process. ``exec`` wins over all others, and over the image."""

    exec: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    tty: bool | None = None
    swap_size_mb: int | None = None
    kernel_args: tuple[str, ...] | None = None


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """The virtual hardware."""

    cpu_kind: str | None = None
    cpus: Annotated[int, Meta(ge=0, le=128)] | None = None
    memory_mb: Annotated[int, Meta(ge=0, le=16 * 1024 * 1024)] | None = None
    gpus: int | None = None
    gpu_kind: str | None = None
    kernel_args: tuple[str, ...] | None = None


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A volume in the guest's tree."""

    volume: str
    path: str
    name: str | None = None
    size_gb: int | None = None


class RootfsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The root filesystem. ``persist`` and ``size_gb`` are the API's; the others are castoff's own, the point where any
    rootfs can be given to a machine."""

    persist: Literal["never", "restart", "always"] | Annotated[int, Meta(ge=0, le=3)] | None = None
    size_gb: Annotated[int, Meta(ge=1, le=16 * 1024)] | None = None
    provider: str | None = None
    """Which provider gives it; see ``rootfs.providers``."""
    file: str | None = None
    """A prepared rootfs on the host, under a directory that the operator allowed (``agent.rootfs_directories``)."""
    clone: CloneKind | None = None
    """How the machine gets its own copy."""
    lazy: Lazy | None = None
    """Whether it may start before its data is here."""


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """What follows the command's end."""

    policy: Literal["no", "on-failure", "always", "spot-price", ""] | None = None
    max_retries: Annotated[int, Meta(ge=0)] | None = None


class StopConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the command is asked to end."""

    signal: str | None = None
    timeout: Duration | None = None


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is written before the command starts."""

    guest_path: str
    raw_value: str | None = None
    """Base64."""
    secret_name: str | None = None
    mode: Annotated[int, Meta(ge=0, le=0o7777)] | None = None


class CheckHeader(msgspec.Struct, frozen=True, kw_only=True):
    """A header of a check's request."""

    name: str | None = None
    values: tuple[str, ...] | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A health check."""

    type: Literal["tcp", "http"] | None = None
    port: _Port | None = None
    interval: Duration | None = None
    timeout: Duration | None = None
    grace_period: Duration | None = None
    method: str | None = None
    path: str | None = None
    protocol: str | None = None
    headers: tuple[CheckHeader, ...] | None = None
    tls_skip_verify: bool | None = None
    tls_server_name: str | None = None


class ServicePort(msgspec.Struct, frozen=True, kw_only=True):
    """A port at which a service is offered."""

    port: _Port | None = None
    handlers: tuple[str, ...] | None = None


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine offers at a port of its own."""

    protocol: str | None = None
    internal_port: _Port | None = None
    ports: tuple[ServicePort, ...] | None = None
    checks: tuple[Check, ...] | None = None


class ProcessSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A variable that is a secret of the app: ``name``, or the one of the variable's own name."""

    env_var: str
    name: str | None = None


class EnvironmentFrom(msgspec.Struct, frozen=True, kw_only=True):
    """A variable that is a field of the machine."""

    env_var: str
    field_ref: str


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One of several processes of a machine."""

    exec: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    user: str | None = None
    env: dict[str, str] | None = None
    secrets: tuple[ProcessSecret, ...] | None = None
    ignore_app_secrets: bool | None = None
    env_from: tuple[EnvironmentFrom, ...] | None = None


class MachineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration. Absent and null are the same."""

    image: str
    env: dict[str, str] | None = None
    init: Init | None = None
    guest: Guest | None = None
    metadata: dict[str, str] | None = None
    mounts: tuple[Mount, ...] | None = None
    rootfs: RootfsConfig | None = None
    restart: Restart | None = None
    auto_destroy: bool | None = None
    schedule: Literal["hourly", "daily", "weekly", "monthly", ""] | None = None
    stop_config: StopConfig | None = None
    files: tuple[File, ...] | None = None
    services: tuple[Service, ...] | None = None
    checks: dict[str, Check] | None = None
    processes: tuple[Process, ...] | None = None
    size: str | None = None
    rates: AskedRates | None = None
    """How fast it may be: castoff's own."""


def parse_config(document: Any) -> MachineConfig:
    """The typed view of a configuration.

    Args:
        document: The JSON value that a client sent, or that was kept.

    Raises:
        Invalid: It is none; the message names the field.
    """
    try:
        return msgspec.convert(document, MachineConfig)
    except msgspec.ValidationError as error:
        raise Invalid(f"machine configuration: {error}") from error
