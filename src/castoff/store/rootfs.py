"""Composed root filesystems in the store: ``rootfs/<key>-<size>/{rootfs.ext4,record.json}``.

A cache: each is a pure function of its layers and its size, and made again at will. The key is a digest of the ordered
diffIDs and of the composition's version, so that another way of composing never finds the old one's files.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from castoff.errors import Invalid
from castoff.image.digest import Digest
from castoff.store.durable import replace_file
from castoff.store.locks import Pin, hold

__all__ = ["FILE", "RootfsName", "RootfsRecord", "StoredRootfs", "find_rootfs", "layered_key", "read_record", "rootfs_names"]

FILE = "rootfs.ext4"
RECORD = "record.json"

COMPOSITION = 1
"""Raised with every change of castoff.ext4 that changes a composition's bytes."""

_NAME = re.compile(r"([0-9a-f]{64})-([1-9][0-9]{0,18})\Z")


def layered_key(diff_ids: Sequence[Digest]) -> str:
    """The key of a rootfs composed of these layers, the lowest first: sha256 in hex."""
    lines = [f"castoff composition {COMPOSITION}", *(diff_id.hex for diff_id in diff_ids)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True, order=True)
class RootfsName:
    """What a rootfs is kept under: a key of 64 hex digits, and its size in bytes."""

    key: str
    size: int

    def __str__(self) -> str:
        return f"{self.key}-{self.size}"

    @classmethod
    def parse(cls, text: str) -> RootfsName | None:
        """Reads ``<key>-<size>``; None where it is not one."""
        match = _NAME.match(text)
        return None if match is None else cls(match[1], int(match[2]))


class RootfsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a rootfs beside it."""

    version: int = 1
    provider: str
    """Who made it."""
    layers: tuple[str, ...]
    """diffIDs (``sha256:...``), the lowest first, whose segments it shares; empty where it stands alone."""
    reference: str
    """The image's reference when it was made, for people."""
    image: str
    """The image's manifest digest, likewise."""
    created: float = msgspec.field(default_factory=time.time)
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class StoredRootfs:
    """A rootfs on this host, ready to clone; it is not pruned while this value lives."""

    name: RootfsName
    path: Path
    pin: Pin = field(repr=False, compare=False)

    @property
    def file(self) -> Path:
        """The ext4 image."""
        return self.path / FILE

    def touch(self) -> None:
        """It was used now: prune goes by this."""
        os.utime(self.path)


def find_rootfs(root: Path, name: RootfsName) -> StoredRootfs | None:
    """The rootfs, pinned; None where it is not here."""
    path = root / "rootfs" / str(name)
    pin = hold(path)
    return None if pin is None else StoredRootfs(name, path, pin)


def write_record(directory: Path, record: RootfsRecord) -> None:
    """Writes the record into a builder's directory."""
    replace_file(directory / RECORD, msgspec.json.encode(record), durable=False)


def read_record(directory: Path) -> RootfsRecord:
    """The record of the rootfs in ``directory``.

    Raises:
        Invalid: It is missing or broken.
    """
    path = directory / RECORD
    try:
        return msgspec.json.decode(path.read_bytes(), type=RootfsRecord)
    except (FileNotFoundError, msgspec.MsgspecError) as error:
        raise Invalid(f"{path}: {error}", hint="run `castoff store verify --repair`") from error


def rootfs_names(root: Path) -> Iterator[RootfsName]:
    """The names of all that are here, in order."""
    for entry in sorted((root / "rootfs").iterdir()):
        name = RootfsName.parse(entry.name)
        if name is not None:
            yield name
