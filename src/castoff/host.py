"""A host: the place where everything is wired. The command line is one user of it, any Python program another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from castoff.config import Config, load
from castoff.errors import CastoffError, Conflict, NotFound
from castoff.image.image import Image, Layer, Platform
from castoff.machine.model import MachineRequest, MachineState
from castoff.machine.records import MachineRecords
from castoff.peers.settings import KNOWN_PEERS, PeerSettings
from castoff.rootfs.builds import Alone, Builds
from castoff.rootfs.context import ProviderContext
from castoff.store.rootfs import RootfsName
from castoff.store.store import Store

if TYPE_CHECKING:
    from castoff.artifact.publish import Published
    from castoff.build import BuiltRootfs
    from castoff.machine.machine import Machine
    from castoff.preload import Preloaded
    from castoff.rootfs.verify import Verdict
    from castoff.store.prune import Pruned
    from castoff.store.usage import RootfsUsage, Usage
    from castoff.whereabouts import Whereabouts

__all__ = ["Host", "InspectedImage"]


@dataclass(frozen=True, slots=True)
class InspectedImage:
    """An image, and what of it is on this host."""

    image: Image
    present: tuple[bool, ...]
    """For each layer, whether it is here, converted and complete."""


class Host:
    """This host's images, root filesystems and machines, over one state directory. Made by :meth:`open`.

    Attributes:
        config: The configuration that it was opened with.
        store: What it keeps.
        machines: The records of its machines.
    """

    def __init__(
        self, config: Config, store: Store, notice: Callable[[str], None] = lambda line: None, builds: Builds | None = None
    ) -> None:
        self.config = config
        self.store = store
        self.machines = MachineRecords(store.machines)
        self.providers = ProviderContext(
            store,
            config.rootfs,
            config.layers,
            image=config.image,
            artifact=config.artifact,
            sources=config.sources,
            hydrate=config.hydrate,
            peers=_peers(config),
            builds=builds or Alone(),
            converted=self._converted,
            notice=notice,
        )
        self._notice = notice
        self._sweeping: asyncio.Task[int] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        state: Path | str | None = None,
        *,
        config: Config | None = None,
        notice: Callable[[str], None] = lambda line: None,
        builds: Builds | None = None,
    ) -> AsyncIterator[Host]:
        """Opens the host.

        Args:
            state: The state directory; the configuration's by default. Made where it is missing.
            config: The configuration; the usual files' by default.
            notice: Called with a line for people, when something was set up that they should know of.
            builds: Who converts layers that are not here; this host does by default.

        Raises:
            Unauthorized: The state belongs to somebody else.
            Invalid: A configuration file is broken.
        """
        config = config or load(state=None if state is None else Path(state))
        where = config.state if state is None else Path(state)
        # In a thread: the first time it makes a filesystem.
        host = cls(config, await asyncio.to_thread(Store.open, where, config.store, notice=notice), notice, builds)
        try:
            yield host
        finally:
            if host._sweeping is not None:
                await host._sweeping

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

        if request.name is not None:
            await self._sweep_machines()  # a machine that was left behind must not keep its name
        try:
            return await create(request, config=self.config, store=self.store, providers=self.providers, records=self.machines)
        finally:
            if self._sweeping is None:  # only now: the guest boots, and nobody waits for this
                self._sweeping = asyncio.create_task(self._sweep_machines())

    def _converted(self, image: Image) -> None:
        """An image had to be converted: the settings may want that to have been the last time anywhere."""
        if self.config.artifact.publish != "auto":
            return
        from castoff.publish_later import publish_later

        try:
            publish_later(image, self.config, self.store.state)
        except CastoffError as error:
            self._notice(str(error))

    async def _sweep_machines(self) -> int:
        from castoff.machine.leftovers import sweep

        return await sweep(self.machines, self.config.vmm, self.providers, self._notice)

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
        from castoff.build import build_rootfs

        return await build_rootfs(
            image, size=size, output=output, platform=platform, config=self.config, store=self.store, providers=self.providers
        )

    async def preload(
        self,
        image: str,
        *,
        size: int | None = None,
        platform: Platform | None = None,
        limit: int = 0,
        profile_only: bool = False,
    ) -> Preloaded:
        """Makes all ready that machines of an image need: its layers from a trusted artifact, or converted; and its rootfs.

        Args:
            image: The image's reference.
            size: Bytes of the filesystem; the configuration's by default.
            platform: Of the image.
            limit: Bytes of packs a second at most; 0: no limit.
            profile_only: Only the chunks that the image's boot profile names; lazy machines find them here.

        Raises:
            NotFound: There is no such image; or with ``profile_only`` no artifact that counts, or no profile.
            CastoffError: It could not be made ready. What came in stays, and the next preload goes on from there.
        """
        from castoff.preload import preload

        return await preload(
            image,
            size=size,
            platform=platform,
            limit=limit,
            profile_only=profile_only,
            config=self.config,
            store=self.store,
            providers=self.providers,
        )

    async def whereabouts(self, image: str, *, platform: Platform | None = None) -> Whereabouts:
        """Where every part of an image's rootfs is: store, artifact, origin. Fetches no data.

        Raises:
            CastoffError: As ``ImageSource.resolve``.
        """
        from castoff.whereabouts import whereabouts

        return await whereabouts(image, platform=platform, config=self.config, store=self.store, providers=self.providers)

    async def publish(
        self, image: str, *, to: str | None = None, index: bool = False, platform: Platform | None = None
    ) -> Published:
        """Publishes the rootfs artifact of an image, signed by this host; converts layers that are not here.

        Args:
            image: The image's reference.
            to: The repository (``HOST[:PORT]/PATH``) that gets it; the image's own by default.
            index: Push an image index too that lists image and artifact, under the tag ``TAG-castoff``.
            platform: Of the image.

        Raises:
            CastoffError: It could not be made or pushed. What was pushed stays, and the next publish goes on from there.
        """
        from castoff.publish import publish

        return await publish(image, to=to, index=index, platform=platform, config=self.config, providers=self.providers)

    async def usage(self) -> Usage:
        """What the store holds, what it takes on disk, and who needs it."""
        from castoff.store.usage import store_usage

        return await asyncio.to_thread(
            store_usage, self.store.root, free=max(0, self.store.free()), limit=self.config.store.size_limit
        )

    async def rootfs(self) -> tuple[RootfsUsage, ...]:
        """The root filesystems that are here, and those that machines run on while they come in (``hydrated`` below 1)."""
        from castoff.machine.hydrated import hydrating

        usage = await self.usage()
        return (*usage.rootfs, *await asyncio.to_thread(hydrating, self.store.machines, usage))

    async def sweep(self) -> int:
        """Removes what processes left that are gone: machines of ``castoff run``, half-made and half-deleted things; how many."""
        from castoff.store.builds import sweep

        return await self._sweep_machines() + len(await asyncio.to_thread(sweep, self.store.root))

    async def prune(self, *, limit: int = 0, dry_run: bool = False) -> Pruned:
        """Removes layers and root filesystems that nobody uses, the least recently used first, until ``limit`` bytes are left."""
        from castoff.store.prune import prune

        await self._sweep_machines()  # what a dead machine stood on is unused
        return await asyncio.to_thread(prune, self.store.root, limit=limit, dry_run=dry_run)

    async def verify(self, *, repair: bool = False) -> tuple[Verdict, ...]:
        """Hashes every layer again, composes every rootfs again, and compares; with ``repair`` what is broken goes."""
        from castoff.rootfs.verify import verify_store

        return await verify_store(self.store, repair=repair)

    async def verify_rootfs(self, name: str) -> Verdict:
        """Checks one rootfs of the store, ``<key>-<size>``, and its layers.

        Raises:
            NotFound: It is not here.
        """
        from castoff.rootfs.verify import verify_rootfs

        return await verify_rootfs(self.store, _rootfs_name(name))

    async def verify_origin(self, image: str, *, platform: Platform | None = None) -> tuple[Verdict, ...]:
        """Converts an image's layers anew, and compares with what its trusted artifact says of them, every digest.

        Raises:
            NotFound: There is no such image, or no artifact that counts.
            CastoffError: The image or its artifact cannot be fetched.
        """
        from castoff.origin import verify_origin

        return await verify_origin(image, platform=platform, config=self.config, store=self.store, providers=self.providers)

    async def remove_rootfs(self, name: str) -> None:
        """Removes one rootfs of the store, ``<key>-<size>``; its layers stay.

        Raises:
            NotFound: It is not here.
            Conflict: A machine or a process uses it.
        """
        from castoff.store.prune import remove_rootfs

        await asyncio.to_thread(remove_rootfs, self.store.root, _rootfs_name(name))

    async def remove(self, name_or_id: str, *, force: bool = False) -> None:
        """Removes a machine: one that ended, or with ``force`` one that runs.

        Raises:
            NotFound: There is none of that name or id.
            Conflict: It runs.
        """
        from castoff.machine.removal import end_machine, remove_machine

        record = await asyncio.to_thread(self.machines.get, name_or_id)
        if record.agent:
            raise Conflict(f"machine {record.id} is the agent's", hint="destroy it through the agent's API")
        if not force and record.state != MachineState.EXITED and record.owner.alive():
            raise Conflict(f"machine {record.id} runs", hint="stop its command, or use --force")
        await end_machine(record, self.machines, self.config.vmm)
        await remove_machine(record, self.machines, self.providers)

    def _is_present(self, layer: Layer) -> bool:
        found = self.store.layer(layer.diff_id)
        return found is not None and found.complete


def _peers(config: Config) -> PeerSettings:
    """Whom fetches ask: the agent of a fleet keeps a file of the hosts that it knows."""
    known = config.state / "agent" / KNOWN_PEERS
    if config.peers.known is not None or not (config.fleet.is_used or known.exists()):
        return config.peers
    return msgspec.structs.replace(config.peers, known=known)


def _rootfs_name(text: str) -> RootfsName:
    name = RootfsName.parse(text)
    if name is None:
        raise NotFound(f"{text[:100]!r} names no root filesystem", hint="`castoff rootfs list` shows those that are here")
    return name
