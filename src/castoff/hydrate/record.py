"""What a directory with an incomplete rootfs holds, and ``lazy.json``, which says what it is.

    root.ext4     the clone: metadata is written, chunks that are not here are holes
    lazy.json     LazyRecord
    lazy.map      castoff.hydrate.map: which chunk of which layer each hole wants
    lazy.state    castoff.hydrate.state: absent, filling, present; one byte a row of the map
    lazy.log      events that were read and not answered yet (castoff.hydrate.eventlog)
    lazy.events   for people: one line a change (a source fails, is back, reads were given up, complete)

Whoever makes the rootfs writes the first four, then attaches (castoff.hydrate.client). When every row is present the
hydrator removes map, state and log, and sets ``complete``: root.ext4 is a plain file from then on.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Final

import msgspec

from castoff.errors import Invalid, NotFound
from castoff.hydrate.settings import HydrateSettings
from castoff.image.settings import ImageSettings
from castoff.peers.settings import PeerSettings
from castoff.sources.settings import SourceSettings
from castoff.store.durable import replace_file

__all__ = [
    "ABSENT",
    "CLONE",
    "EVENTS",
    "FILLING",
    "LOG",
    "MAP",
    "PRESENT",
    "RECORD",
    "STATE",
    "FrontKind",
    "LazyLayer",
    "LazyRecord",
    "read_record",
    "write_record",
]

CLONE = "root.ext4"
RECORD = "lazy.json"
MAP = "lazy.map"
STATE = "lazy.state"
LOG = "lazy.log"
EVENTS = "lazy.events"

ABSENT: Final = 0
FILLING: Final = 1
PRESENT: Final = 2
"""What a byte of ``lazy.state`` says of its row (castoff.hydrate.state)."""

_VERSION = 1


class FrontKind(enum.StrEnum):
    """How an incomplete rootfs is served."""

    FANOTIFY = "fanotify"
    """``root.ext4`` itself is the machine's drive; the kernel asks before each access (Linux 6.14 and newer)."""
    FUSE = "fuse"
    """A read-only file of a FUSE mount; ``root.ext4`` is behind it and is filled the same way."""


class LazyLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A layer that rows of the map come from; the map names it by its place in the record."""

    diff_id: str
    pack: str
    """Digest of the blob with its chunks."""


class HotPackRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A hot pack (castoff.hydrate.hotpack) in a registry."""

    repository: str
    """``HOST[:PORT]/PATH`` where it is."""
    digest: str
    size: int
    """Bytes."""


class LazyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is served, and where its chunks are."""

    version: int = _VERSION
    image: str
    """Digest of the image's manifest."""
    repository: str
    """``HOST[:PORT]/PATH`` where the packs are."""
    artifact: str
    """Digest of the artifact's manifest."""
    layers: tuple[LazyLayer, ...]
    size: int
    """Bytes of the rootfs."""
    front: FrontKind
    profile: HotPackRecord | None = None
    """The hot pack that the image's boot profile came with; the profile itself is in the store."""
    publish: bool = False
    """Whether the boot profile is published where it becomes news: ``artifact.publish`` when the machine was created."""
    complete: bool = False
    """Every row was filled: the map and the state are gone."""
    hydrate: HydrateSettings = HydrateSettings()
    registry: ImageSettings = ImageSettings()
    """How the repository is reached: the hydrator outlives whoever had the configuration."""
    sources: SourceSettings = SourceSettings()
    """How patiently it is read."""
    peers: PeerSettings = PeerSettings()
    """Which other hosts are asked before it."""


def write_record(directory: Path, record: LazyRecord) -> None:
    """Writes the record, whole or not at all.

    Not flushed: after a crash of the host the machine is gone, and its clone with it.
    """
    replace_file(directory / RECORD, msgspec.json.encode(record, enc_hook=str), mode=0o600, durable=False)


def read_record(directory: Path) -> LazyRecord:
    """A directory's record.

    Raises:
        NotFound: It has none: its rootfs is not a lazy one.
        Invalid: It is broken, or of another version.
    """
    path = directory / RECORD
    try:
        record = msgspec.json.decode(path.read_bytes(), type=LazyRecord, dec_hook=lambda kind, value: kind(value))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{directory} has no lazy rootfs") from error
    except msgspec.MsgspecError as error:
        raise Invalid(f"{path}: {error}", hint="remove the machine that it belongs to") from error
    if record.version != _VERSION:
        raise Invalid(f"{path} is of version {record.version}; this castoff reads version {_VERSION}")
    return record
