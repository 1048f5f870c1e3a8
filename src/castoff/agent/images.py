"""What ``flyctl machine run`` asks of an image, from the host's own image source."""

from __future__ import annotations

from castoff.api.parts import ImageDescription
from castoff.create import opened
from castoff.host import Host

__all__ = ["HostImages"]


class HostImages:
    """Implements castoff.api.parts.ImageInfo.

    Args:
        host: Resolves references.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    async def describe(self, reference: str) -> ImageDescription:
        """See the port."""
        async with opened(reference, None, config=self._host.config, store=self._host.store) as (_, image):
            return ImageDescription(
                reference=image.reference.partition("@")[0],
                digest=str(image.digest),
                size=sum(layer.size for layer in image.layers),
                annotations={},
            )
