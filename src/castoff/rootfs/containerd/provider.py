"""The provider that asks a running containerd: pulls the image into it, and gives machines its snapshots.

On a snapshotter of block devices each machine has a lease and a writable snapshot in containerd, both named after it, until it
is released; its record says where. On others the image is made into an ext4 once, kept in our store, and cloned like any
rootfs: nothing of a machine is in containerd then.

Neither gRPC nor anything that needs it is imported before a containerd is to be asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from castoff import timeline
from castoff.disk.choose import clone_strategy
from castoff.errors import Invalid, NoSpace, NotFound, Unsupported
from castoff.image.digest import Digest
from castoff.image.image import Image
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.provider import Rootfs, RootfsRequest
from castoff.rootfs.settings import ContainerdSettings
from castoff.store.locks import lock
from castoff.store.machines import MachineRootfs
from castoff.store.rootfs import FILE, RootfsName, RootfsRecord
from castoff.store.store import Store

if TYPE_CHECKING:
    from castoff.rootfs.containerd.client import Client

__all__ = ["ContainerdProvider", "image_key"]

_MAX_SIZE = 16 << 40
_LOOK = 0.1
"""Seconds after which free space is looked at again while mke2fs writes."""
_RATIO = 8
"""Bytes of a rootfs for each compressed one, at least: images unpack to 2 to 4 times their size."""


class ContainerdProvider:
    """Answers with what containerd makes of the image; with None where no containerd is, and none is asked for.

    One is asked for where the settings have a section for it, or name no other provider.
    """

    name = "containerd"

    def __init__(self, context: ProviderContext) -> None:
        self._context = context
        self._settings = context.settings.containerd or ContainerdSettings()
        self._required = context.settings.containerd is not None or context.settings.providers == (self.name,)

    async def locate(self, request: RootfsRequest) -> Rootfs | None:
        """A snapshot's block device for each machine, or an ext4 made of the image.

        Raises:
            Unsupported, NotFound: A containerd is asked for and cannot be; or the host lacks what making an ext4 needs.
            Unauthorized: Its socket is not ours to use.
            Invalid: The image does not fit into the size asked for, or snapshots have another size.
            CastoffError: As containerd, or the image's source, raises.
        """
        absent = self._absent()
        if absent is not None:
            if self._required:
                raise absent
            return None
        with timeline.step("rootfs.containerd", snapshotter=self._settings.snapshotter):
            return self._found(request) or await self._made(request)

    async def release_machine(self, machine_id: str, record: MachineRootfs) -> None:
        """Gives back a machine's snapshot and lease, wherever its record says that they are. Idempotent."""
        if "snapshot" not in record.state:
            return
        from castoff.rootfs.containerd.snapshot import release

        where = {key: record.state[key] for key in ("socket", "namespace", "snapshotter")}
        await release(machine_id, msgspec.structs.replace(self._settings, **where))

    def _absent(self) -> Unsupported | NotFound | None:
        """Why no containerd can be asked, or None."""
        if importlib.util.find_spec("grpc") is None:
            return Unsupported("grpcio is not installed", hint="pip install 'castoff[containerd]'")
        if not Path(self._settings.socket).is_socket():
            return NotFound(f"no containerd listens at {self._settings.socket}", hint="start it, or set rootfs.containerd.socket")
        return None

    def _found(self, request: RootfsRequest) -> Rootfs | None:
        """The ext4 that was made of the image earlier."""
        from castoff.rootfs.containerd.image_rootfs import ImageRootfs

        stored = self._context.store.rootfs(self._name(request))
        if stored is None:
            return None
        stored.touch()
        return ImageRootfs(stored, clone_strategy(request.clone or self._context.settings.clone, self._context.store))

    def _name(self, request: RootfsRequest) -> RootfsName:
        return RootfsName(image_key([layer.diff_id for layer in request.image.layers]), request.size or self._size(request.image))

    def _size(self, image: Image) -> int:
        """Bytes of a rootfs for which no size is asked: the setting, doubled until it is large for the image's blobs."""
        size, compressed = self._context.settings.size, sum(layer.size for layer in image.layers)
        while size < _RATIO * compressed and size < _MAX_SIZE:
            size *= 2
        return min(size, _MAX_SIZE)

    async def _made(self, request: RootfsRequest) -> Rootfs:
        """Pulls, one process at a time for one image, and looks what the snapshotter has made."""
        from castoff.rootfs.containerd.client import connected

        locks = self._context.store.root / "locks"
        async with connected(self._settings) as client, lock(locks / f"containerd-{request.image.digest.hex}"):
            for attempt in range(2):
                try:
                    return self._found(request) or await self._pulled(client, request)
                except NotFound:  # containerd collected a snapshot between our look at it and our use of it
                    if attempt:
                        raise
        raise AssertionError("unreachable")

    async def _pulled(self, client: Client, request: RootfsRequest) -> Rootfs:
        from castoff.rootfs.containerd.handover import block_device, make_image
        from castoff.rootfs.containerd.pull import leased, pull
        from castoff.rootfs.containerd.snapshot import SnapshotRootfs

        async with leased(client, "pull") as under:
            top = await pull(under, request.image, request.source, self._settings, parallel=self._context.settings.parallel)
            key = f"castoff-view-{os.urandom(6).hex()}"
            mounts = await under.view(key, top, {})
            try:
                device = block_device(mounts, self._settings.snapshotter)
                if device is not None:
                    _check_wishes(request, device.size, self._settings.snapshotter)
                    return SnapshotRootfs(self._settings, top, device.size)
                name = self._name(request)

                async def build(directory: Path) -> None:
                    # A lower bound: how much the snapshot holds is not known before mke2fs has read it.
                    await asyncio.to_thread(self._context.store.require, sum(layer.size for layer in request.image.layers))
                    making = make_image(mounts, directory / FILE, name.size, timeout=self._settings.timeout)
                    await _watched(making, directory / FILE, self._context.store)

                record = RootfsRecord(
                    provider=self.name, layers=(), reference=request.image.reference, image=str(request.image.digest)
                )
                await self._context.store.build_rootfs(name, record, build)
            finally:
                await under.remove_snapshot(key)
        await self._context.store.keep_to_limit()
        found = self._found(request)
        assert found is not None
        return found


def image_key(diff_ids: list[Digest]) -> str:
    """The key in our store of an ext4 that mke2fs made of an image: another than a composition's of the same layers."""
    lines = ["castoff image of containerd 1", *(diff_id.hex for diff_id in diff_ids)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


async def _watched(making: Coroutine[Any, Any, None], path: Path, store: Store) -> None:
    """Runs ``making``, which writes ``path``, while there is room.

    Raises:
        NoSpace: It would have filled the disk, and was stopped.
    """
    task = asyncio.ensure_future(making)
    try:
        while not (await asyncio.wait([task], timeout=_LOOK))[0]:
            await asyncio.to_thread(_look, path, store)
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


def _look(path: Path, store: Store) -> None:
    if store.room(0) <= 0:
        written = path.stat().st_blocks * 512 if path.exists() else 0
        raise NoSpace(str(store.root), needed=max(written, 1), available=0)


def _check_wishes(request: RootfsRequest, size: int, snapshotter: str) -> None:
    """A block device is what it is: refuses what it cannot be."""
    if request.size is not None and request.size > size:
        raise Invalid(
            f"snapshots of containerd's {snapshotter} have {size} bytes, and {request.size} were asked for",
            hint="leave --disk-size away, or raise the snapshotter's base size in containerd's configuration",
        )
    if request.clone is not None:
        raise Unsupported(
            f"snapshots of containerd's {snapshotter} are each machine's own already, and cannot be a {request.clone}",
            hint="leave --clone away",
        )
