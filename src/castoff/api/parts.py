"""What the API is built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiohttp import web

from castoff.api.auth import Authenticator
from castoff.api.ports import Apps, Releases, Secrets, Volumes
from castoff.api.regions import Room
from castoff.lifecycle.attached import Attached
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.settings import AgentSettings

__all__ = ["MACHINE_ID", "PARTS", "ImageDescription", "ImageInfo", "Parts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDescription:
    """What ``flyctl machine run`` asks of an image before it makes a machine of it.

    Attributes:
        reference: With its registry and without its digest: flyctl puts ``@`` and the digest behind it itself.
        digest: ``sha256:...`` of its manifest.
        size: Bytes of its layers as they are transferred.
        annotations: Its manifest's.
    """

    reference: str
    digest: str
    size: int
    annotations: Mapping[str, str]


class ImageInfo(Protocol):
    """Knows images."""

    async def describe(self, reference: str) -> ImageDescription:
        """What an image is.

        Raises:
            CastoffError: It is no reference, or there is no such image.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The server's parts; the agent makes them, and ends them after the server.

    Attributes:
        room: How many machines each region of the fleet takes; None: this host is of no fleet.
    """

    machines: Machines
    apps: Apps
    volumes: Volumes
    attached: Attached
    secrets: Secrets
    releases: Releases
    authenticator: Authenticator
    images: ImageInfo
    settings: AgentSettings
    room: Room | None = None


PARTS: Final = web.AppKey("castoff.parts", Parts)
MACHINE_ID: Final[Any] = getattr(web, "RequestKey", web.AppKey)("castoff.machine_id", str)
"""Key in a request for a new machine, whose id is chosen already. (aiohttp before 3.14 has no RequestKey, and takes any.)"""
