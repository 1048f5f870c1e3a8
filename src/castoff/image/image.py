"""What an image is, once its reference is resolved to one manifest for one platform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from castoff.image.digest import Digest
from castoff.image.media import OCI_MANIFEST

__all__ = ["Image", "ImageConfig", "Layer", "Platform"]


@dataclass(frozen=True, slots=True)
class Platform:
    """An OCI platform, ``os/architecture[/variant]``."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image: the blob as the registry has it, and the diffID of the tar inside."""

    digest: Digest
    size: int
    media_type: str
    diff_id: Digest


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What the image says of the process to run (OCI image config, ``config``)."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """An image: always one manifest digest for one platform.

    ``layers`` are in application order, the lowest first.
    """

    reference: str
    digest: Digest
    platform: Platform
    config: ImageConfig
    layers: tuple[Layer, ...]
    media_type: str = OCI_MANIFEST
    """Of the manifest that ``digest`` names."""
    size: int = 0
    """Bytes of that manifest."""
