"""What this host knows of packs and indexes that it published: ``STATE/store/published/<diffID hex>``, a small JSON file each.

With it the second publish of a layer makes no pack: its blobs are asked for by their digests, and where another repository
of the same registry has them, they are mounted from there. It is a cache; without it the pack is made again, and comes out
the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from castoff.artifact.artifact import ArtifactLayer, Blob
from castoff.errors import CastoffError
from castoff.image.digest import Digest
from castoff.store.durable import replace_file

__all__ = ["KnownBlobs", "read_known", "write_known"]

_VERSION = 1
_LIMIT = 64 << 10
_MAX_PLACES = 32


@dataclass(frozen=True, slots=True)
class KnownBlobs:
    """Blobs of one layer that were published before."""

    layer: ArtifactLayer
    compressor: str
    repositories: tuple[str, ...] = ()
    """Where they are or were, ``HOST[:PORT]/PATH``, the latest first."""

    def at(self, repository: str) -> KnownBlobs:
        """The same, known to be in ``repository`` too."""
        others = (name for name in self.repositories if name != repository)
        return replace(self, repositories=(repository, *others)[:_MAX_PLACES])

    def beside(self, registry: str) -> list[str]:
        """Paths of the repositories of ``registry`` that have them."""
        return [name.removeprefix(f"{registry}/") for name in self.repositories if name.startswith(f"{registry}/")]


class _Row(msgspec.Struct, frozen=True):
    digest: str
    size: int


class _Record(msgspec.Struct, frozen=True):
    version: int
    compressor: str
    index: _Row
    pack: _Row
    repositories: tuple[str, ...]


def read_known(store: Path, diff_id: Digest, compressor: str) -> KnownBlobs | None:
    """What is known of a layer's blobs as ``compressor`` makes them; None: nothing, or nothing that can be read. Blocks."""
    try:
        data = _path(store, diff_id).read_bytes()
        record = msgspec.json.decode(data[:_LIMIT], type=_Record)
        blobs = [Blob(Digest.parse(row.digest), row.size) for row in (record.index, record.pack)]
    except (OSError, msgspec.DecodeError, CastoffError):
        return None  # a cache
    if record.version != _VERSION or record.compressor != compressor:
        return None
    return KnownBlobs(ArtifactLayer(diff_id, *blobs), compressor, record.repositories)


def write_known(store: Path, known: KnownBlobs) -> None:
    """Remembers ``known``. Blocks.

    Raises:
        OSError: The disk does not take it.
    """
    path = _path(store, known.layer.diff_id)
    path.parent.mkdir(mode=0o755, exist_ok=True)
    index, pack = (_Row(str(blob.digest), blob.size) for blob in (known.layer.index, known.layer.pack))
    record = _Record(_VERSION, known.compressor, index, pack, known.repositories)
    replace_file(path, msgspec.json.encode(record), durable=False)


def _path(store: Path, diff_id: Digest) -> Path:
    return store / "published" / diff_id.hex
