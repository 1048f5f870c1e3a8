"""The files of volumes and snapshots: ``DIRECTORY/ID/data.ext4``, and ``DIRECTORY/ID/SNAPSHOT.ext4`` beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from castoff.disk.volume import copy_volume, grow_volume, make_volume
from castoff.errors import Internal
from castoff.lifecycle.volume_rows import Snapshot, Volume
from castoff.store.durable import fsync_path, remove

__all__ = ["VolumeDirectory"]

_DATA: Final = "data.ext4"


class VolumeDirectory:
    """Where files of volumes are. What a method made or removed is on disk when it returns.

    Args:
        path: The directory; best on a filesystem with reflinks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def data(self, id: str) -> Path:
        """A volume's file."""
        return self._path / id / _DATA

    def snapshot(self, snapshot: Snapshot) -> Path:
        """A snapshot's file."""
        return self._path / snapshot.volume / f"{snapshot.id}.ext4"

    async def prepare(self) -> None:
        """Makes the directory where it is missing."""
        with self._errors():
            await asyncio.to_thread(self._path.mkdir, mode=0o700, parents=True, exist_ok=True)

    async def make(self, volume: Volume, origin: Path | None, *, live: bool) -> None:
        """A new volume's file: empty, or begun with ``origin``, which a machine may be writing to where it is ``live``."""
        path = self.data(volume.id)
        with self._errors():
            await asyncio.to_thread(path.parent.mkdir, mode=0o700)
            await asyncio.to_thread(fsync_path, self._path)
            if origin is None:
                await make_volume(path, volume.size, volume.name)
                return
            await copy_volume(origin, path, live=live)
            await grow_volume(path, volume.size)

    async def grow(self, id: str, size: int) -> None:
        """A volume's filesystem, to ``size`` bytes; no machine has it."""
        with self._errors():
            await grow_volume(self.data(id), size)

    async def take(self, snapshot: Snapshot, *, live: bool) -> int:
        """A snapshot's file; the bytes of data in it."""
        with self._errors():
            await copy_volume(self.data(snapshot.volume), self.snapshot(snapshot), live=live)
            return (await asyncio.to_thread(self.snapshot(snapshot).stat)).st_blocks * 512

    async def remove(self, which: Volume | Snapshot) -> None:
        """Removes a volume's files and its snapshots', or one snapshot's. Idempotent."""
        with self._errors():
            path = self._path / which.id if isinstance(which, Volume) else self.snapshot(which)
            await asyncio.to_thread(_remove, path)

    async def unknown(self, known: Collection[str], snapshots: Mapping[str, Mapping[str, Snapshot]]) -> list[str]:
        """What is here beside the known volumes and snapshots, by its path in the directory."""

        def look() -> list[str]:
            found: list[Path] = []
            for directory in sorted(self._path.iterdir()):
                if directory.name not in known:
                    found.append(directory)
                    continue
                names = {_DATA, *(self.snapshot(one).name for one in snapshots.get(directory.name, {}).values())}
                found += [entry for entry in sorted(directory.iterdir()) if entry.name not in names]
            return [str(path.relative_to(self._path)) for path in found]

        with self._errors():
            return await asyncio.to_thread(look)

    async def discard(self, names: list[str]) -> None:
        """Removes what ``unknown`` found."""
        with self._errors():
            for name in names:
                await asyncio.to_thread(_remove, self._path / name)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Translates what the disk says."""
        try:
            yield
        except OSError as error:
            raise Internal(f"volumes: {error.strerror or error}", hint=f"is the disk of {self._path} well, and yours?") from error


def _remove(path: Path) -> None:
    remove(path)
    if path.parent.exists():
        fsync_path(path.parent)
