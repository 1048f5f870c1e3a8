"""The store: what this host has of images, in one directory that reflinks where the host can.

    STATE/store/layers/<diffID hex>/     castoff.store.layers
    STATE/store/rootfs/<key>-<size>/     castoff.store.rootfs
    STATE/store/images/sha256/<hex>      manifests and configs, by digest (castoff.image)
    STATE/store/machines/<id>/           one machine's own: clone, sockets, logs; on the same filesystem, so that clones share
    STATE/store/kernels/                 guest kernels
    STATE/store/profiles/<hex>.json      boot profiles, by image (castoff.hydrate.profile_file)
    STATE/store/locks/, tmp/             castoff.store.builds
    STATE/store.xfs, STATE/store/.castoff, STATE/.store.lock    castoff.store.backing

``STATE/machines`` is a symlink to ``store/machines``.

Opening costs well under a millisecond once the store is set up and mounted, and imports nothing heavy.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from castoff import timeline
from castoff.errors import Invalid
from castoff.image.digest import Digest
from castoff.store.backing import Backing, Notice, open_backing, unmount_backing
from castoff.store.builds import Build, build_once, uninterrupted
from castoff.store.have import Have
from castoff.store.layers import StoredLayer, find_layer, finish_layer, is_broken, layer_path
from castoff.store.rootfs import FILE, RootfsName, RootfsRecord, StoredRootfs, find_rootfs, write_record
from castoff.store.settings import StoreSettings
from castoff.store.space import free, require

if TYPE_CHECKING:
    from castoff.layers.index import LayerIndex
    from castoff.store.prune import Pruned
    from castoff.store.usage import Usage

__all__ = ["Store"]


class Store:
    """A store, open. It holds no descriptor and needs no closing; any number of processes use one at a time."""

    def __init__(self, state: Path, settings: StoreSettings, backing: Backing) -> None:
        self.state = state
        self.settings = settings
        self.backing = backing
        self.root = state / "store"
        self._segment_sizes: dict[Digest, int] = {}

    @classmethod
    def open(cls, state: Path, settings: StoreSettings | None = None, *, notice: Notice = lambda line: None) -> Store:
        """Opens the store of ``state``; makes it, or mounts it, where need be (which takes a second, once).

        Args:
            state: castoff's state directory; made if it is missing.
            settings: The defaults, if None.
            notice: Called with one line for people when a loop-mounted XFS is made, or when there can be no reflinks.

        Raises:
            Unauthorized: It belongs to another user.
            Unsupported: The settings ask for what this host cannot do.
        """
        settings = settings or StoreSettings()
        state = state.absolute()
        return cls(state, settings, open_backing(state, settings, notice))

    @property
    def reflink(self) -> bool:
        """Whether files in the store share extents."""
        return self.backing.reflink

    @property
    def machines(self) -> Path:
        """Where machines' directories go."""
        return self.root / "machines"

    @property
    def images(self) -> Path:
        """Manifests and configs by digest: ``sha256/<hex>`` in it."""
        return self.root / "images"

    @property
    def kernels(self) -> Path:
        """Guest kernels."""
        return self.root / "kernels"

    def free(self) -> int:
        """Bytes that may still be written: what is free, less the reserve of the settings."""
        places = (self.root, self.state) if self.backing.kind == "loop" else (self.root,)
        return free(*places) - self.settings.reserve

    def trim(self) -> None:
        """Gives what a loop-mounted store has freed back to the disk below it. Blocks."""
        if self.backing.kind == "loop":
            from castoff.store.loop import trim

            trim(self.root, self.root / ".castoff")

    def room(self, needed: int) -> int:
        """Bytes that may be written, after a trim where they are not more than ``needed``. Blocks."""
        available = self.free()
        if needed < available:
            return available
        self.trim()
        return self.free()

    def require(self, needed: int, where: Path | None = None) -> None:
        """Raises NoSpace where ``needed`` bytes are more than :meth:`room`."""
        require(where or self.root, needed=needed, available=self.room(needed))

    def layer(self, diff_id: Digest) -> StoredLayer | None:
        """The layer, pinned against pruning; None where this host has nothing of it."""
        return find_layer(self.root, diff_id)

    def segment_size(self, diff_id: Digest) -> int | None:
        """Bytes of a layer's whole segment; None where nothing of it is known. Asked once: a layer never changes."""
        if diff_id not in self._segment_sizes:
            have = Have.read(layer_path(self.root, diff_id) / "have")
            if have is None:
                return None
            self._segment_sizes[diff_id] = have.segment_size
        return self._segment_sizes[diff_id]

    async def build_layer(self, diff_id: Digest, build: Build) -> StoredLayer:
        """The complete layer; ``build`` makes ``segment`` and ``index`` (and may make ``tables``) where it is not here.

        Of any number of callers, in any number of processes, one builds and the others wait for it. One that is still coming
        in (:meth:`begin_layer`) is replaced; who has its files open keeps them.

        Raises:
            NoSpace: The disk became full.
            Conflict: What is coming in, and needed by a machine, contradicts what was built.
        """

        async def layer(directory: Path) -> None:
            await build(directory)
            await uninterrupted(finish_layer, directory)

        def find() -> StoredLayer | None:
            found = self.layer(diff_id)
            return found if found is not None and found.complete else None

        def place(temporary: Path, target: Path) -> None:
            from castoff.store.replace import publish_or_replace  # numpy, which the warm path must not import

            publish_or_replace(self.root, temporary, target)

        target = layer_path(self.root, diff_id)
        return await build_once(self.root, f"layer-{diff_id.hex}", target, layer, find, place=place, blocks=is_broken)

    async def begin_layer(self, diff_id: Digest, index: LayerIndex) -> StoredLayer:
        """The layer as it is here: whole, or coming in; begun if it is not here at all (castoff.store.hydration).

        Its index is what counts from here on, also where it is another than ``index``: that of a whole layer has no
        locations. One that comes in already gets the locations of ``index``.

        Args:
            diff_id: The layer.
            index: From an artifact that is trusted, with locations in packs.

        Raises:
            Invalid: The index is of another layer, or has chunks that are in no pack.
            Conflict: The layer comes in already, and from an artifact that says other things of it.
            NoSpace: The disk became full.
        """
        from castoff.store.hydration import fill_directory
        from castoff.store.replace import adopt_locations, publish_unless_there

        if index.diff_id != diff_id:
            raise Invalid(f"the index of layer {diff_id} is that of {index.diff_id}")
        begun = False

        async def begin(directory: Path) -> None:
            nonlocal begun
            begun = True
            reserve = await asyncio.to_thread(self.room, index.segment_size) > index.segment_size
            await uninterrupted(partial(fill_directory, directory, index, reserve=reserve))

        target = layer_path(self.root, diff_id)
        find = partial(self.layer, diff_id)
        layer = await build_once(self.root, f"begin-{diff_id.hex}", target, begin, find, place=publish_unless_there)
        if not begun and not layer.complete:
            await uninterrupted(adopt_locations, layer.path, index)
        return layer

    def rootfs(self, name: RootfsName) -> StoredRootfs | None:
        """The rootfs, pinned against pruning; None where it is not here."""
        return find_rootfs(self.root, name)

    async def build_rootfs(self, name: RootfsName, record: RootfsRecord, build: Build) -> StoredRootfs:
        """The rootfs; ``build`` makes ``rootfs.ext4`` where it is not here. One builds, as with layers.

        Raises:
            NoSpace: The disk became full.
        """

        async def rootfs(directory: Path) -> None:
            await build(directory)
            (directory / FILE).chmod(0o644)
            write_record(directory, record)

        return await build_once(self.root, f"rootfs-{name}", self.root / "rootfs" / str(name), rootfs, lambda: self.rootfs(name))

    async def usage(self) -> Usage:
        """What the store holds, what that takes on disk, and who needs it."""
        from castoff.store.usage import store_usage

        return await asyncio.to_thread(store_usage, self.root, free=self.free(), limit=self.settings.size_limit)

    async def prune(self, *, limit: int = 0, dry_run: bool = False) -> Pruned:
        """Removes what no machine and no process uses, the least recently used first.

        Args:
            limit: Until layers and root filesystems take at most so many bytes; 0: all that is unused.
            dry_run: Only say what ``limit=0`` would remove.
        """
        from castoff.store.prune import prune

        with timeline.step("store.prune", limit=limit):
            pruned = await uninterrupted(partial(prune, self.root, limit=limit, dry_run=dry_run))
            if not dry_run and (pruned.rootfs or pruned.layers or pruned.debris):
                await uninterrupted(self.trim)
            return pruned

    async def keep_to_limit(self) -> None:
        """Prunes to the settings' ``size_limit``, where there is one: called after something was added."""
        if self.settings.size_limit:
            await self.prune(limit=self.settings.size_limit)

    async def remove_rootfs(self, name: RootfsName) -> None:
        """Removes one rootfs; its layers stay.

        Raises:
            NotFound: It is not here.
            Conflict: A machine or a process uses it.
        """
        from castoff.store.prune import remove_rootfs

        await uninterrupted(remove_rootfs, self.root, name)

    def unmount(self) -> bool:
        """Unmounts a loop-mounted store (the next ``open`` mounts it again); False where it is none.

        Raises:
            Conflict: It is in use.
        """
        return unmount_backing(self.state)
