"""Records what a machine reads until it is ready, and adds that to the image's profile.

Nobody asks for it: each boot of an incomplete clone is recorded, the first one makes the profile. READY is the command's
first output or ``castoff ready`` in the guest, whichever comes first, or the command's end where it ended well without a word.

Not recorded is what would be a wrong trace: of a hydrator that took over midway (it makes no recorder, since it did not see
the beginning), and of a front whose reads the host's page cache answers because another machine made them already.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castoff.hydrate.profile import MAX_CHUNKS, Boot, ChunkId, Profile
from castoff.hydrate.profile_file import update_profile
from castoff.image.digest import Digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Recorder"]


class Recorder:
    """Records one boot.

    Args:
        root: The store's directory.
        image: The image's manifest.
        table: The machine's map: a structured array with the columns ``layer`` and ``chunk``.
        layers: The diffIDs that the map's layer numbers mean.
    """

    def __init__(self, root: Path, image: Digest, table: NDArray[Any], layers: Sequence[Digest]) -> None:
        self._root = root
        self._image = image
        self._table = table
        self._layers = tuple(layers)
        self._seen = bytearray(len(table))
        self._uses: list[tuple[float, int]] = []
        self._over = False
        self._cut = False

    def note(self, row: int, when: float) -> None:
        """The guest reads a chunk, which is here or not. For any thread, and cheap: 0.1 us, 0.3 for a row's first time.

        No lock: each step is atomic under the interpreter's own, and two threads that note the same new row at once leave
        it twice, which :meth:`ready` sees.

        Args:
            row: Of the map.
            when: ``time.monotonic()``.
        """
        if self._seen[row] or self._over:
            return
        self._seen[row] = 1
        self._uses.append((when, row))

    def cut(self) -> None:
        """The guest's reads are not seen from here on (the clone is complete), though it may not be ready yet."""
        self._cut = True

    def trace(self, when: float) -> tuple[ChunkId, ...]:
        """The chunks that were read up to ``when``, in the order of their first use, each once. Ends the recording."""
        self._over = True
        rows = dict.fromkeys(row for at, row in sorted(self._uses) if at <= when)
        columns = self._table["layer"], self._table["chunk"]
        chunks = (ChunkId(self._layers[columns[0][row]], int(columns[1][row])) for row in rows)
        return tuple(dict.fromkeys(chunks))[:MAX_CHUNKS]

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
