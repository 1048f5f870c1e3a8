"""The port at which a rootfs is handed to machines: who provides it is pluggable.

Words: a *request* is one create's wish (image, size, overrides). A *provider* answers ``locate`` with a *rootfs* ready
to clone, or with None: not mine, ask the next. A *rootfs* gives each machine its drives; when the machine is destroyed
it is released. "Not here" is None; "broken" raises and stops the chain.

Providers are found through the entry point group ``castoff.rootfs_providers``; the configuration says which, in which
order. Each passes castoff.conformance.provider.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from castoff.disk.clone import CloneKind, Drive
from castoff.image.image import Image
from castoff.image.source import ImageSource
from castoff.rootfs.settings import Lazy

__all__ = ["Rootfs", "RootfsProvider", "RootfsRequest"]


@dataclass(frozen=True, slots=True)
class RootfsRequest:
    """What one create asks for.

    Attributes:
        image: The resolved image.
        source: Where its blobs come from.
        size: Bytes that the root filesystem should have; None: the provider's default.
        override: An existing rootfs file or block device that the machine's own settings name, or None.
        clone: How machines get their copy; None: the best that the host can do.
        lazy: Whether they may start before all of it is here; None: as the settings say.
    """

    image: Image
    source: ImageSource
    size: int | None = None
    override: Path | None = None
    clone: CloneKind | None = None
    lazy: Lazy | None = None


class Rootfs(Protocol):
    """A rootfs on this host, ready to give machines their drives."""

    @property
    def provider(self) -> str:
        """Name of the provider that made it."""
        ...

    async def clone(self, machine_id: str, directory: Path) -> list[Drive]:
        """The drives of one machine; its own files go to ``directory``. Safe to call at once for many machines."""
        ...

    async def release(self, machine_id: str) -> None:
        """The machine is destroyed: gives back what outlives its directory. Idempotent, also in a later process."""
        ...


class RootfsProvider(Protocol):
    """Answers "give me a rootfs for this image on this host"."""

    name: str

    async def locate(self, request: RootfsRequest) -> Rootfs | None:
        """A rootfs for ``request``, made now if need be; None where another provider should be asked."""
        ...
