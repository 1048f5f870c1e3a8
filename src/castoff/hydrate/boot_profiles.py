"""Boot profiles at work in the hydrator: each boot is recorded, prefetched by what is known, and shared when it is news.

A rootfs that is attached takes its image's profile from the store. Where it came with a hot pack, that one blob is streamed,
for all rootfs of the image at once, and what it does not bring is fetched from the packs in the profile's order. The stream
may have begun before the rootfs was attached (:meth:`BootProfiles.expect`): a create tells of it as soon as it knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Final

from castoff.artifact.artifact import Blob
from castoff.artifact.keys import host_key
from castoff.artifact.profiles import open_hot_pack
from castoff.artifact.repository import open_repository, parse_repository
from castoff.artifact.trust import load_trust
from castoff.errors import CastoffError, NotFound
from castoff.hydrate.hot_fill import HotFill
from castoff.hydrate.hot_stream import HotPackStream
from castoff.hydrate.profile_file import read_profile
from castoff.hydrate.record import HotPackRecord
from castoff.hydrate.recorder import ProfileRecorder
from castoff.hydrate.scheduler import Scheduler
from castoff.hydrate.served import Served
from castoff.hydrate.sharing import Sharing, share_profile, subject_of
from castoff.image.digest import Digest
from castoff.image.push import RegistryWriter
from castoff.image.settings import ImageSettings
from castoff.store.hydration import present_chunks
from castoff.store.layers import layer_path
from castoff.store.store import Store

__all__ = ["BootProfiles"]

_SETTLE: Final = 3.0
"""Seconds after READY before a hot pack is made: a guest that has just begun its work needs the CPU more."""


@dataclass(slots=True)
class _Coming:
    """A hot pack that is coming in."""

    stream: HotPackStream
    taken: asyncio.Task[int] | None = None
    """Who takes it; None: no rootfs is attached yet."""
    timer: asyncio.TimerHandle | None = None


class BootProfiles:
    """The boot profiles of all rootfs that a hydrator serves. Everything happens in its event loop.

    Args:
        store: The host's.
        scheduler: Fetches.
        patience: Seconds for which a hot pack waits for a rootfs that takes it.
    """

    def __init__(self, store: Store, scheduler: Scheduler, *, patience: float = 30.0) -> None:
        self._store = store
        self._scheduler = scheduler
        self._patience = patience
        self._served: dict[Served, asyncio.Task[None]] = {}
        self._coming: dict[Digest, _Coming] = {}
        self._sharing: dict[Digest, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether a profile is being published, or a hot pack comes in for a rootfs that is to be attached soon."""
        return bool(self._sharing or self._coming)

    async def expect(self, image: Digest, hot_pack: HotPackRecord, registry: ImageSettings) -> None:
        """A rootfs of the image will be attached soon: its hot pack begins to come in, unless most of it is here already."""
        if image not in self._coming and not await asyncio.to_thread(self._is_mostly_here, image):
            self._begin(image, hot_pack, registry)

    def _begin(self, image: Digest, hot_pack: HotPackRecord, registry: ImageSettings) -> None:
        if image in self._coming:
            return
        stream = HotPackStream(_pieces(image, hot_pack, registry), image=image, size=hot_pack.size)
        timer = asyncio.get_running_loop().call_later(self._patience, self._forget, image)
        self._coming[image] = _Coming(stream, timer=timer)

    def attached(self, served: Served, *, fresh: bool) -> None:
        """A rootfs is served from now on. Called when the scheduler knows it, and before its front starts.

        Args:
            served: The rootfs.
            fresh: No hydrator before this one has served it: only then is its boot recorded.
        """
        if fresh:
            layers = [Digest.parse(layer.diff_id) for layer in served.record.layers]
            served.recorder = ProfileRecorder(self._store.root, _image(served), served.map, layers)
        self._served[served] = asyncio.create_task(self._prefetch(served))

    async def ready(self, served: Served, when: float) -> None:
        """The machine is ready since ``time.monotonic()`` ``when``: its boot is added to the profile, which may be news."""
        recorder, served.recorder = served.recorder, None
        if not isinstance(recorder, ProfileRecorder):
            return
        if served.states.complete:
            recorder.cut()
        try:
            profile = await recorder.ready(when)
        except CastoffError as error:
            served.say(f"the boot was not recorded: {error}")
            return
        image = _image(served)
        if profile is not None and served.record.publish and image not in self._sharing:
            self._sharing[image] = asyncio.create_task(self._share(served))
            self._sharing[image].add_done_callback(lambda task: self._sharing.pop(image, None))

    async def detached(self, served: Served) -> None:
        """The rootfs is served no longer. Called before its segments are closed."""
        served.recorder = None
        task = self._served.pop(served, None)
        image = _image(served)
        ending: list[asyncio.Task[Any]] = [task] if task is not None else []
        if image in self._coming and not any(_image(other) == image for other in self._served):
            coming = self._coming.pop(image)
            ending += self._end(coming)
        for one in ending:
            one.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def close(self) -> None:
        """Stops all of it; what is being published is not."""
        for served in list(self._served):
            await self.detached(served)
        for image in list(self._coming):
            self._forget(image)
        tasks = [*self._sharing.values(), *self._closing]
        for task in self._sharing.values():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Prefetching.

    async def _prefetch(self, served: Served) -> None:
        image, hot_pack = _image(served), served.record.profile
        try:
            profile = await asyncio.to_thread(read_profile, self._store.root, image)
        except CastoffError as error:
            served.say(f"the boot profile cannot be used: {error}")
            profile = None
        if hot_pack is not None and image not in self._coming and not await asyncio.to_thread(self._is_mostly_here, image):
            self._begin(image, hot_pack, served.record.registry)
        coming = self._coming.get(image)
        if coming is not None:
            if coming.taken is None:
                coming.taken = asyncio.create_task(self._take(image, coming, served))
            try:
                await asyncio.shield(coming.taken)
            except CastoffError as error:
                served.say(f"the hot pack did not come whole: {error}")
        if profile is not None:
            layers = [Digest.parse(layer.diff_id) for layer in served.record.layers]
            self._scheduler.prefetch(served, profile.rows(served.map.rows, layers).tolist())

    def _is_mostly_here(self, image: Digest) -> bool:
        """Whether the store has at least half of what the image's profile names; blocks.

        What is missing then is cheaper to fetch by itself, after a machine of the image ran here before.
        """
        try:
            profile = read_profile(self._store.root, image)
            if profile is None:
                return False
            wanted: dict[Digest, list[int]] = {}
            for chunk in profile.chunks:
                wanted.setdefault(chunk.diff_id, []).append(chunk.number)
            here = sum(self._count_here(diff_id, numbers) for diff_id, numbers in wanted.items())
        except CastoffError:
            return False  # whoever uses it says what is wrong with it
        return 2 * here > len(profile.chunks)

    def _count_here(self, diff_id: Digest, numbers: list[int]) -> int:
        try:
            present = present_chunks(layer_path(self._store.root, diff_id))
        except NotFound:
            return 0
        return sum(bool(present[number]) for number in numbers if number < len(present))

    async def _take(self, image: Digest, coming: _Coming, served: Served) -> int:
        if coming.timer is not None:
            coming.timer.cancel()
        try:
            async with coming.stream:
                segments = {segment.diff_id: segment for segment in served.segments}
                brought = await HotFill(coming.stream, segments, self._scheduler).run()
                served.say(f"the hot pack brought {brought} chunks, {coming.stream.received} bytes came")
                return brought
        finally:
            if self._coming.get(image) is coming:
                del self._coming[image]

    def _forget(self, image: Digest) -> None:
        """Nobody took it."""
        for task in self._end(self._coming.pop(image)):
            task.cancel()

    def _end(self, coming: _Coming) -> list[asyncio.Task[Any]]:
        """What is to be cancelled and waited for so that a hot pack ends."""
        if coming.timer is not None:
            coming.timer.cancel()
        if coming.taken is not None:
            return [coming.taken]
        closing = asyncio.create_task(coming.stream.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return []

    # Sharing.

    async def _share(self, served: Served) -> None:
        record = served.record
        with ExitStack() as pins:
            layers = {}
            for segment in served.segments:
                layer = self._store.layer(segment.diff_id)
                if layer is not None:
                    pins.callback(layer.pin.close)
                    layers[segment.diff_id] = (layer.segment, segment.index)
            await asyncio.sleep(_SETTLE)
            writer = RegistryWriter(parse_repository(record.repository), record.registry)
            try:
                state = self._store.state
                key, trust = await asyncio.to_thread(host_key, state), await asyncio.to_thread(load_trust, state)
                subject = await subject_of(writer.client, Digest.parse(record.artifact))
                published = await share_profile(Sharing(self._store.root, writer, key, trust, subject, layers))
            except CastoffError as error:
                served.say(f"the boot profile was not published: {error}")
            else:
                if published is not None:
                    served.say(f"the boot profile was published to {published.repository}: {published.digest}")
            finally:
                await writer.close()


def _image(served: Served) -> Digest:
    return Digest.parse(served.record.image)


async def _pieces(image: Digest, hot_pack: HotPackRecord, registry: ImageSettings) -> AsyncGenerator[bytes, None]:
    """The hot pack's bytes, over a connection of its own."""
    async with open_repository(hot_pack.repository, registry) as client:
        blob = Blob(Digest.parse(hot_pack.digest), hot_pack.size)
        async with aclosing(open_hot_pack(client, image, blob, registry)) as pieces:
            async for piece in pieces:
                yield piece
