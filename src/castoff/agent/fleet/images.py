"""Which images this host has, by what stands beside its root filesystems: asked with every machine, so nobody else is asked."""

from __future__ import annotations

import contextlib
from pathlib import Path

from castoff.errors import CastoffError
from castoff.fleet.holders import Holders
from castoff.fleet.members import Members
from castoff.fleet.offers import Question
from castoff.image.digest import Digest
from castoff.store.rootfs import read_record, rootfs_names

__all__ = ["ImagesHere"]


class ImagesHere:
    """The images of which a rootfs is here.

    Args:
        root: The store's.
        members: The hosts of the fleet.
        holders: What they have.
    """

    def __init__(self, root: Path, members: Members, holders: Holders) -> None:
        self._root = root
        self._members = members
        self._holders = holders
        self._stamp = -1
        self._layers: dict[str, tuple[str, ...]] = {}

    def layers(self, reference: str) -> tuple[str, ...]:
        """The diffIDs of an image's layers, hex; none where the image was never here."""
        directory = self._root / "rootfs"
        stamp = directory.stat().st_mtime_ns if directory.exists() else -1
        if stamp != self._stamp:
            self._layers, self._stamp = self._read(), stamp
        return self._layers.get(reference, ())

    def share(self, question: Question) -> tuple[float, int]:
        """How much of an image is here, and how near a host is that has all of it: 2 in this zone, 1 in this region, else 0."""
        layers = [Digest(layer) for layer in question.layers or self.layers(question.image)]
        own = self._members.find(self._members.own)
        share = self._holders.share(self._members.own, layers)
        if not layers or own is None or share >= 1.0:
            return share, 0
        near = 0
        for member in self._members.alive():
            record = member.record
            if record.id != own.id and record.region == own.region and self._holders.share(record.id, layers) >= 1.0:
                near = max(near, 2 if record.zone == own.zone else 1)
        return share, near

    def _read(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for name in rootfs_names(self._root):
            with contextlib.suppress(CastoffError):  # broken, or just removed
                record = read_record(self._root / "rootfs" / str(name))
                layers = tuple(Digest.parse(layer).hex for layer in record.layers)
                found[record.reference] = layers
                found[f"{record.reference.partition('@')[0]}@{record.image}"] = layers
        return found
