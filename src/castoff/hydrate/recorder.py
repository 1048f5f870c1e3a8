"""Records what a machine reads until it is ready, and adds that to the image's profile.

Nobody asks for it: each boot of an incomplete clone is recorded, the first one makes the profile. READY is the command's
first output or ``castoff ready`` in the guest, whichever comes first, or the command's end where it ended well and said
nothing.

Not recorded is what would be a wrong trace: of a hydrator that took over midway (it makes no recorder, since it did not see
the beginning), and of a front whose reads the host's page cache answers because another machine made them already.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from castoff.hydrate.answerer import Uses
from castoff.hydrate.map import LazyMap
from castoff.hydrate.profile import MAX_CHUNKS, Boot, ChunkId, Profile
from castoff.hydrate.profile_file import update_profile
from castoff.image.digest import Digest
from castoff.layers.toc import CHUNK

__all__ = ["ProfileRecorder"]


class ProfileRecorder:
    """A :class:`castoff.hydrate.front.Recorder` that records one boot.

    Args:
        root: The store's directory.
        image: The image's manifest.
        map: The machine's.
        layers: The diffIDs that the map's layer numbers mean.
    """

    def __init__(self, root: Path, image: Digest, map: LazyMap, layers: Sequence[Digest]) -> None:
        self._root = root
        self._image = image
        self._map = map
        self._layers = tuple(layers)
        self.uses = Uses(map.chunks + 1)
        self._seen = bytearray(map.chunks)
        self._uses: list[tuple[float, int]] = []
        self._over = False
        self._cut = False

    def access(self, start: int, end: int, when: float, missed: bool) -> None:
        """The guest reads bytes ``start`` to ``end`` of the rootfs, which are here or not. For any thread, and cheap.

        No lock: each step is atomic under the interpreter's own, and two threads that read the same new chunk at once leave
        it twice, which :meth:`trace` sees.
        """
        seen = self._seen
        for chunk in range(start // CHUNK, min(-(-end // CHUNK), len(seen))):
            if not seen[chunk] and not self._over:
                seen[chunk] = 1
                self._uses.append((when, chunk))

    def cut(self) -> None:
        """The guest's reads are not seen from here on (the clone is complete), though it may not be ready yet."""
        self._cut = True

    def trace(self, when: float) -> tuple[ChunkId, ...]:
        """The chunks that were read up to ``when``, in the order of their first use, each once. Ends the recording."""
        self._over = True
        rows = [
            self._map.row_of[chunk] for at, chunk in sorted([*self._uses, *self.uses.read()]) if at <= when
        ]  # -1: metadata, free space
        layer, number = self._map.layer_of, self._map.layer_chunk_of
        found = (ChunkId(self._layers[layer[row]], number[row]) for row in rows if row >= 0)
        return tuple(dict.fromkeys(found))[:MAX_CHUNKS]

    async def ready(self, when: float) -> Profile | None:
        """Ends the recording, and merges it into the image's profile in the store.

        A trace that was cut is better than none, and worse than any other: it is kept only where there is no profile yet.

        Args:
            when: ``time.monotonic()`` of READY, on this host: what was read since does not count.

        Returns:
            The image's profile from now on; None where there is none (nothing was read). A second call changes nothing.

        Raises:
            Unavailable: It cannot be written.
        """
        if self._over:
            return await update_profile(self._root, self._image, lambda before: None)
        chunks = self.trace(when)
        boot = Boot(int(time.time()), os.urandom(8).hex(), chunks)

        def add(before: Profile | None) -> Profile | None:
            if not chunks or (self._cut and before is not None):
                return None
            return Profile.of(self._image, (*(before.boots if before else ()), boot))

        return await update_profile(self._root, self._image, add)
