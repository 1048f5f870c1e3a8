"""A host: the place where everything is wired. The command line is one user of it, any Python program another."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castoff.config import Config, load
from castoff.image.image import Image, Layer, Platform
from castoff.machine.model import MachineRequest
from castoff.machine.records import MachineRecords
from castoff.rootfs.context import ProviderContext
from castoff.store.store import Store

if TYPE_CHECKING:
    from castoff.machine.machine import Machine

__all__ = ["BuiltRootfs", "Host", "InspectedImage"]


@dataclass(frozen=True, slots=True)
class InspectedImage:
    """An image, and what of it is on this host."""

    image: Image
    present: tuple[bool, ...]
    """For each layer, whether it is here, converted and complete."""


@dataclass(frozen=True, slots=True)
class BuiltRootfs:
    """A root filesystem that is ready to boot from."""

    image: Image
    provider: str
    size: int
    """Bytes of the filesystem."""
    name: str
    """What the store keeps it under; empty where it is none of the store's."""
    file: Path | None
    """Where it was written to; None where it stays in the store."""


class Host:
    """This host's images, root filesystems and machines, over one state directory. Made by :meth:`open`.

    Attributes:
        config: The configuration that it was opened with.
        store: What it keeps.
        machines: The records of its machines.
    """

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.machines = MachineRecords(store.machines)
        self.providers = ProviderContext(store, config.rootfs)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, state: Path | str | None = None, *, config: Config | None = None, notice: Callable[[str], None] = lambda line: None
    ) -> AsyncIterator[Host]:
        """Opens the host.

        Args:
            state: The state directory; the configuration's by default. Made where it is missing.
            config: The configuration; the usual files' by default.
            notice: Called with a line for people, when something was set up that they should know of.

        Raises:
            Unauthorized: The state belongs to somebody else.
            Invalid: A configuration file is broken.
        """
        config = config or load(state=None if state is None else Path(state))
        yield cls(config, Store.open(config.state if state is None else Path(state), config.store, notice=notice))

    async def run(self, image: str, *, command: Sequence[str] = (), **more: Any) -> Machine:
        """Starts a machine that runs a command of an image.

        Args:
            image: The image's reference.
            command: Replaces the image's own.
            more: Further fields of :class:`castoff.MachineRequest`.

        Raises:
            CastoffError: It could not be started; nothing of it is left.
        """
        return await self.create(MachineRequest(image=image, command=tuple(command), **more))

    async def create(self, request: MachineRequest) -> Machine:
        """Starts the machine that ``request`` asks for; see :meth:`run`."""
        from castoff.create import create

        return await create(request, config=self.config, store=self.store, providers=self.providers, records=self.machines)

    async def inspect(self, image: str, *, platform: Platform | None = None) -> InspectedImage:
        """Resolves an image's reference and looks which of its layers are here. Fetches no layer.

        Raises:
            CastoffError: As ``ImageSource.resolve``.
        """
        from castoff.create import opened

        async with opened(image, platform, config=self.config, store=self.store) as (_, found):
            return InspectedImage(found, tuple(map(self._is_present, found.layers)))

    async def build_rootfs(
        self, image: str, *, size: int | None = None, output: Path | None = None, platform: Platform | None = None
    ) -> BuiltRootfs:
        """Makes the root filesystem of an image, ready for machines, or finds it made.

        Args:
            image: The image's reference.
            size: Bytes of the filesystem; the configuration's by default.
            output: A file to write it to besides (shared with the store where the filesystem can).
            platform: Of the image.

        Raises:
            CastoffError: It could not be made; nothing is left of the attempt but whole layers.
        """
        from castoff.machine.build import build_rootfs

        return await build_rootfs(image, size=size, output=output, platform=platform)

    def _is_present(self, layer: Layer) -> bool:
        found = self.store.layer(layer.diff_id)
        return found is not None and found.complete
