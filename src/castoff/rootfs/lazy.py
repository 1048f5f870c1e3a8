"""A rootfs that machines start from before its data is here.

    a trusted artifact of the image? -> its layers' indexes are fetched and kept (castoff.rootfs.remote)
    for each machine                 -> the image is composed into the machine's own clone, with holes (castoff.rootfs.holes)
                                        -> the hydrator is told (castoff.hydrate.client), and only then may a VMM open it

When every layer is complete there is nothing lazy left: the next create finds them, and composes as ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from castoff import timeline
from castoff.artifact.artifact import Artifact
from castoff.disk.clone import Drive, Role
from castoff.disk.files import created
from castoff.disk.overlay import OverlayClone
from castoff.errors import CastoffError, Unavailable, Unsupported
from castoff.hydrate.client import attach, detach
from castoff.hydrate.record import (
    CLONE,
    EVENTS,
    LOG,
    MAP,
    RECORD,
    STATE,
    FrontKind,
    HotPackRecord,
    LazyLayer,
    LazyRecord,
    write_record,
)
from castoff.image.image import Image
from castoff.image.referrers import ReferrerLists
from castoff.rootfs.boot_profile import adopted_profile
from castoff.rootfs.composition import compose_layers, layer_tables
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.holes import write_with_holes
from castoff.rootfs.provider import Rootfs, RootfsRequest
from castoff.rootfs.remote import RemoteLayer, begin_layers
from castoff.rootfs.settings import Lazy
from castoff.rootfs.size import default_size
from castoff.rootfs.trusted import NoArtifact, trusted_artifact
from castoff.store.builds import uninterrupted
from castoff.store.machines import MachineRootfs, write_machine_rootfs
from castoff.store.rootfs import RootfsName, layered_key

__all__ = ["LazyRootfs", "locate_lazily"]

_PROFILE_PATIENCE = 0.5
"""Seconds that a create waits for a boot profile when it has all else: longer than that it gains nothing."""


@dataclass(frozen=True, slots=True)
class LazyRootfs:
    """A rootfs of which at least the indexes are here. Its layers stay while this value lives, and while a machine's record
    names them."""

    image: Image
    artifact: Artifact
    layers: tuple[RemoteLayer, ...]
    """The image's, the lowest first."""
    size: int
    front: FrontKind
    hot_pack: HotPackRecord | None
    context: ProviderContext
    whole: Callable[[], Awaitable[Rootfs]] | None
    """Makes all of it, where nothing can be served after all; None: then a create fails."""
    provider: str = "layered"

    async def clone(self, machine_id: str, directory: Path) -> list[Drive]:
        """See castoff.rootfs.provider. The drive's descriptors are to be inherited by the VMM."""
        layers = tuple(str(layer.stored.diff_id) for layer in self.layers)
        state = {
            "lazy": self.front.value,
            "rootfs": str(RootfsName(layered_key([layer.stored.diff_id for layer in self.layers]), self.size)),
            "reference": self.image.reference,
            "image": str(self.image.digest),
        }
        write_machine_rootfs(directory, MachineRootfs(provider=self.provider, layers=layers, state=state))
        path = await uninterrupted(self._compose, directory)
        try:
            attached = await attach(self.context.store.state, directory)
        except CastoffError as error:
            if self.whole is None:
                raise
            self.context.notice(f"{self.image.reference} cannot start lazily: {error}")
            await self._give_up(machine_id, directory)
            return await (await self.whole()).clone(machine_id, directory)
        if self.front is FrontKind.FANOTIFY:
            return [Drive(Role.ROOT, path, read_only=False, direct=True, inherit=attached.descriptors)]
        from castoff.hydrate.fuse import BASE

        try:
            base, upper = await OverlayClone(self.context.store).clone(directory / BASE, directory, size=self.size)
        except BaseException:
            attached.close()
            raise
        return [replace(base, inherit=attached.descriptors), upper]

    async def release(self, machine_id: str) -> None:
        """The hydrator lets go of the machine's clone."""
        await release_lazily(machine_id, self.front, self.context)

    async def _give_up(self, machine_id: str, directory: Path) -> None:
        """Nothing was served, so nobody has the clone open: the directory is as it was before."""
        await uninterrupted((directory / RECORD).unlink)  # first: a hydrator that comes late goes by it
        await self.release(machine_id)
        for name in (CLONE, MAP, STATE, LOG, EVENTS):
            await uninterrupted((directory / name).unlink, True)

    def _compose(self, directory: Path) -> Path:
        with timeline.step("rootfs.lazy", size=self.size, layers=len(self.layers)) as step:
            tables = {layer.stored.diff_id: layer_tables(layer.stored.path) for layer in self.layers}
            stack = [(layer.stored.diff_id, tables[layer.stored.diff_id]) for layer in self.layers]
            composition = compose_layers(self.image.reference, stack, self.size)
            self.context.store.require(composition.metadata_bytes)
            with created(directory / CLONE, needed=composition.metadata_bytes) as (path, descriptor):
                holes = write_with_holes(composition, self.layers, descriptor, directory)
                write_record(directory, self._record())
            step.attributes |= {"chunks": holes.wanted, "here": holes.present}
            return path

    def _record(self) -> LazyRecord:
        return LazyRecord(
            image=str(self.image.digest),
            repository=self.artifact.repository,
            artifact=str(self.artifact.digest),
            layers=tuple(LazyLayer(diff_id=str(layer.stored.diff_id), pack=str(layer.pack)) for layer in self.layers),
            size=self.size,
            front=self.front,
            profile=self.hot_pack,
            publish=self.context.artifact.publish == "auto",
            hydrate=self.context.hydrate,
            registry=self.context.image,
            sources=self.context.sources,
            peers=self.context.peers,
        )


async def locate_lazily(
    request: RootfsRequest,
    front: FrontKind,
    context: ProviderContext,
    mode: Lazy,
    whole: Callable[[], Awaitable[Rootfs]],
) -> LazyRootfs | None:
    """The image's rootfs, to be filled while machines run; None where it is to be made whole first.

    Args:
        request: The create's; of its image not every layer is here.
        front: How this host serves what is not here (castoff.rootfs.front).
        context: The store, the settings, how to reach registries.
        mode: ``auto``: whatever is in the way is told of and leads to None; ``always``: it raises.
        whole: Makes all of it first, where ``auto`` finds out only when a machine's clone is to be served that it cannot be.

    Raises:
        NoArtifact: There is none that counts, and must be.
        CastoffError: The artifact's registry failed, or what it gave is broken, and must not be.
    """
    with timeline.step("rootfs.lazy", image=request.image.reference) as step:
        try:
            return await _locate(request, front, context, None if mode is Lazy.ALWAYS else whole)
        except CastoffError as error:
            if mode is Lazy.ALWAYS:
                raise
            step.attributes["not"] = error.what
            if not isinstance(error, NoArtifact | Unsupported):
                context.notice(f"{request.image.reference} cannot start lazily: {error}")
            return None


async def _locate(
    request: RootfsRequest, front: FrontKind, context: ProviderContext, whole: Callable[[], Awaitable[Rootfs]] | None
) -> LazyRootfs:
    lists = ReferrerLists(request.image.digest)
    profile = asyncio.create_task(adopted_profile(request.image, context, lists=lists))
    try:
        artifact = await trusted_artifact(request.image, context, lists)
        remote = await begin_layers([layer.diff_id for layer in request.image.layers], artifact, context)
        done, _ = await asyncio.wait({profile}, timeout=_PROFILE_PATIENCE)
        hot_pack = profile.result() if done else None
    finally:
        profile.cancel()
        await asyncio.gather(profile, return_exceptions=True)
    layers = tuple(remote[layer.diff_id] for layer in request.image.layers)
    size = request.size or default_size(context.settings, sum(layer.index.segment_size for layer in layers))
    await context.store.keep_to_limit()  # a layer that begins has its room reserved
    return LazyRootfs(request.image, artifact, layers, size, front, hot_pack, context, whole)


async def release_lazily(machine_id: str, front: str, context: ProviderContext) -> None:
    """The hydrator lets go of a machine's clone. Idempotent.

    It lets go by itself of machines whose directory is gone, so what keeps it from listening keeps no machine here.
    """
    from castoff.hydrate import fuse_mount
    from castoff.hydrate.fuse import MOUNT

    try:
        try:
            await detach(context.store.state, machine_id)
        except Unavailable:  # it has just died; its successor knows the machine
            await detach(context.store.state, machine_id)
    except Unavailable as error:
        context.notice(f"machine {machine_id} is removed unheard: {error}")
    if front == FrontKind.FUSE:
        # Where no hydrator runs any more, nobody has unmounted what it served; a directory with a mount cannot be deleted.
        await asyncio.to_thread(fuse_mount.unmount, context.store.machines / machine_id / MOUNT, abort=True)
