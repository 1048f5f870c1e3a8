"""Images that were resolved before, by digest: a process that makes many machines of one image reads its documents once.

A digest names the same bytes for ever, so nothing here can be out of date; what a tag names is looked up every time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Final

from castoff.image.digest import Digest
from castoff.image.image import Image, Platform

__all__ = ["KnownImages"]

_MOST: Final = 256
"""Images; with a hundred layers each takes some 40 KB."""


class KnownImages:
    """The most recently used ones of one process."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._images: OrderedDict[tuple[Digest, Platform], Image] = OrderedDict()

    def get(self, reference: str, digest: Digest, asked: Platform) -> Image | None:
        """What a manifest or an index is for a platform, under the name that it is asked for by."""
        image = self._images.get((digest, asked))
        if image is None:
            return None
        self._images.move_to_end((digest, asked))
        return image if image.reference == reference else replace(image, reference=reference)

    def keep(self, digest: Digest, asked: Platform, image: Image) -> None:
        """Keeps what was just read and checked."""
        self._images[digest, asked] = image
        self._images.move_to_end((digest, asked))
        if len(self._images) > self._most:
            self._images.popitem(last=False)
