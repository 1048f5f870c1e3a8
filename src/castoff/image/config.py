"""The image config: which process to run, and the diffIDs of the layers.

Source: OCI image spec 1.1, config.md; Docker's (image/spec/spec.md in moby) has the same fields.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from castoff.errors import Invalid
from castoff.image.digest import Digest
from castoff.image.image import ImageConfig, Platform
from castoff.image.manifest import MAX_LAYERS, decode_json

__all__ = ["decode_config"]


class _Process(msgspec.Struct, rename="pascal"):
    user: str | None = None
    entrypoint: tuple[str, ...] | str | None = None
    cmd: tuple[str, ...] | str | None = None
    env: tuple[str, ...] | None = None
    working_dir: str | None = None
    stop_signal: str | None = None
    exposed_ports: dict[str, Any] | None = None
    labels: dict[str, str | None] | None = None


class _RootFs(msgspec.Struct):
    type: str = "layers"
    diff_ids: tuple[str, ...] | None = None


class _Config(msgspec.Struct):
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    config: _Process | None = None
    rootfs: _RootFs | None = None


def decode_config(what: str, data: bytes, asked: Platform) -> tuple[ImageConfig, Platform, tuple[Digest, ...]]:
    """Decodes an image config.

    Args:
        what: Names it in errors.
        data: The config's bytes, already verified.
        asked: The platform asked for: what the config leaves out is taken from it.

    Returns:
        What to run, what for, and the diffIDs, lowest layer first.

    Raises:
        Invalid: It is broken, or holds what no kernel can run (a NUL in an argument).
    """
    document = decode_json(what, data, _Config)
    rootfs = document.rootfs or _RootFs()
    if rootfs.type != "layers":
        raise Invalid(f"{what} has a rootfs of type {rootfs.type[:100]!r}", hint="castoff knows the type layers only")
    diff_ids = rootfs.diff_ids or ()
    if len(diff_ids) > MAX_LAYERS:
        raise Invalid(f"{what} lists {len(diff_ids)} diffIDs", hint=f"at most {MAX_LAYERS} layers are read")
    platform = Platform(document.os or asked.os, document.architecture or asked.architecture, document.variant or "")
    return _process(what, document.config or _Process()), platform, tuple(Digest.parse(text) for text in diff_ids)


def _process(what: str, row: _Process) -> ImageConfig:
    config = ImageConfig(
        entrypoint=_words(row.entrypoint),
        cmd=_words(row.cmd),
        env=row.env or (),
        user=row.user or "",
        working_dir=row.working_dir or "",
        stop_signal=row.stop_signal or "",
        exposed_ports=tuple(sorted(row.exposed_ports or ())),
        labels={key: value or "" for key, value in sorted((row.labels or {}).items())},
    )
    _check_no_nul(what, "Entrypoint", config.entrypoint)
    _check_no_nul(what, "Cmd", config.cmd)
    _check_no_nul(what, "Env", config.env)
    _check_no_nul(what, "User, WorkingDir and StopSignal", (config.user, config.working_dir, config.stop_signal))
    return config


def _words(value: tuple[str, ...] | str | None) -> tuple[str, ...]:
    # Docker's own type (strslice) reads a lone string as a list of one.
    return (value,) if isinstance(value, str) else value or ()


def _check_no_nul(what: str, field: str, values: Iterable[str]) -> None:
    if any("\0" in value for value in values):
        raise Invalid(f"{what} has a NUL in {field}", hint="no process can be given one")
