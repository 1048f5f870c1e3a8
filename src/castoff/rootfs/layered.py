"""The provider of castoff's own: a rootfs composed of layers that are converted once and shared by all images.

    the rootfs is here?   -> it is answered, and nothing heavy was imported
    its layers are here?  -> composed: the metadata is written, segments are placed by reflink
    an artifact is there? -> machines start from its indexes, and their data comes in while they run (castoff.rootfs.lazy)
    else                  -> missing layers are converted first, several at a time

A layer that an image has twice is converted once and placed twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from castoff import timeline
from castoff.disk.choose import clone_strategy
from castoff.disk.clone import CloneStrategy, Drive
from castoff.errors import Unsupported
from castoff.image.reference import LayoutReference, parse_reference
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.provider import Rootfs, RootfsRequest
from castoff.rootfs.settings import Lazy
from castoff.rootfs.size import default_size
from castoff.store.layers import StoredLayer
from castoff.store.machines import MachineRootfs, write_machine_rootfs
from castoff.store.rootfs import RootfsName, StoredRootfs, layered_key

__all__ = ["LayeredProvider", "LayeredRootfs"]


class LayeredProvider:
    """Makes the rootfs of any image."""

    name = "layered"

    def __init__(self, context: ProviderContext) -> None:
        self._context = context

    async def locate(self, request: RootfsRequest) -> Rootfs | None:
        """Never None: every image can be composed.

        Raises:
            Invalid: A layer is broken, hostile or over a limit; or the image does not fit into the size asked for.
            NoSpace: The disk is, or would become, full.
            CastoffError: What the image's source raised.
        """
        with timeline.step("rootfs.layered"):
            stored = self._find(request) or await self._compose(request)
            if stored is None and (lazy := await self._lazily(request)) is not None:
                return lazy
            return self._rootfs(request, stored or await self._make(request))

    async def release_machine(self, machine_id: str, record: MachineRootfs) -> None:
        """See castoff.rootfs.release: who fills a machine's clone lets go of it."""
        if "lazy" in record.state:
            from castoff.rootfs.lazy import release_lazily

            await release_lazily(machine_id, record.state["lazy"], self._context)

    def _rootfs(self, request: RootfsRequest, stored: StoredRootfs) -> LayeredRootfs:
        stored.touch()
        strategy = clone_strategy(request.clone or self._context.settings.clone, self._context.store)
        return LayeredRootfs(stored, tuple(str(layer.diff_id) for layer in request.image.layers), strategy)

    async def _whole(self, request: RootfsRequest) -> Rootfs:
        """The rootfs, all of it, of which a part may have come in meanwhile."""
        return self._rootfs(request, await self._compose(request) or await self._make(request))

    def _find(self, request: RootfsRequest) -> StoredRootfs | None:
        """The rootfs if it is here: a few system calls, however many layers it has."""
        diff_ids = [layer.diff_id for layer in request.image.layers]
        size = request.size or self._size([self._context.store.segment_size(diff_id) for diff_id in diff_ids])
        return None if size is None else self._context.store.rootfs(RootfsName(layered_key(diff_ids), size))

    def _size(self, segments: Sequence[int | None]) -> int | None:
        """Bytes of the rootfs for which no size was asked; None where a segment's is not known."""
        known = [segment for segment in segments if segment is not None]
        return default_size(self._context.settings, sum(known)) if len(known) == len(segments) else None

    async def _compose(self, request: RootfsRequest) -> StoredRootfs | None:
        """The rootfs of layers that are here; None where something is missing that a file of the image has."""
        layers = [layer for one in request.image.layers if (layer := self._context.store.layer(one.diff_id)) is not None]
        if len(layers) < len(request.image.layers):
            return None
        from castoff.rootfs.composition import has_all  # numpy and all that: 0.2 s that a warm create does without

        if not await has_all(request.image, layers, self._size_for(request, layers)):
            return None
        return await self._build(request, layers)

    async def _lazily(self, request: RootfsRequest) -> Rootfs | None:
        """The rootfs, to be filled while machines run; None where it cannot be so, or shall not."""
        mode = Lazy(request.lazy or self._context.settings.lazy)
        if mode is Lazy.NEVER or (mode is Lazy.AUTO and not self._may_be_published(request)):
            return None
        from castoff.rootfs.front import choose_front, wanted_front

        store, settings = self._context.store, self._context.settings
        try:  # first: a host that cannot serve anything need not start a hydrator, nor ask a registry
            front = choose_front(store, clone=request.clone or settings.clone, wanted=wanted_front(settings))
        except Unsupported:
            if mode is Lazy.ALWAYS:
                raise
            return None
        from castoff.hydrate.client import wake

        # The hydrator starts on another processor while we import registries, numpy and all: 0.2 s that a warm create does
        # without. Where there are no keys, no artifact counts.
        waking = asyncio.ensure_future(wake(store.state)) if (store.state / "keys").is_dir() else None
        lazy = await asyncio.to_thread(import_module, "castoff.rootfs.lazy")
        if waking is not None:
            await asyncio.gather(waking, return_exceptions=True)  # what failed fails again, where it is needed
        rootfs: Rootfs | None = await lazy.locate_lazily(request, front, self._context, mode, partial(self._whole, request))
        return rootfs

    def _may_be_published(self, request: RootfsRequest) -> bool:
        """Whether there is a registry that could have the image's artifact: an image on disk has none of its own."""
        on_disk = isinstance(parse_reference(request.image.reference), LayoutReference)
        return not on_disk or bool(self._context.artifact.repositories)

    async def _make(self, request: RootfsRequest) -> StoredRootfs:
        from castoff.rootfs.conversion import convert_layers

        layers, is_ours = await convert_layers(request.image, request.source, self._context)
        stored = await self._build(request, layers)
        if is_ours:  # else whoever converted them is told
            self._context.converted(request.image)
        return stored

    async def _build(self, request: RootfsRequest, layers: Sequence[StoredLayer]) -> StoredRootfs:
        """Composes; the layers' pins are closed."""
        from castoff.rootfs.composition import build_composed

        try:
            stored = await build_composed(request.image, layers, self._size_for(request, layers), self._context.store)
        finally:
            for layer in layers:
                layer.pin.close()  # from here on the rootfs keeps them
        await self._context.store.keep_to_limit()
        return stored

    def _size_for(self, request: RootfsRequest, layers: Sequence[StoredLayer]) -> int:
        return request.size or default_size(self._context.settings, sum(layer.have.segment_size for layer in layers))


@dataclass(frozen=True, slots=True)
class LayeredRootfs:
    """A composed rootfs of the store. It stays there while this value lives, and while a machine's record names it."""

    stored: StoredRootfs
    layers: tuple[str, ...]
    strategy: CloneStrategy
    provider: str = LayeredProvider.name

    @property
    def path(self) -> Path:
        """The rootfs file, never to be written."""
        return self.stored.file

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.stored.name.size

    async def clone(self, machine_id: str, directory: Path) -> list[Drive]:
        """See castoff.rootfs.provider."""
        record = MachineRootfs(provider=self.provider, rootfs=str(self.stored.name), layers=self.layers)
        write_machine_rootfs(directory, record)
        return await self.strategy.clone(self.path, directory, size=self.size)

    async def release(self, machine_id: str) -> None:
        """Nothing outlives the machine's directory."""
