"""Layers in the store: ``layers/<diffID hex>/{segment,index,tables,have}``.

``segment`` and ``index`` are written by castoff.layers, ``tables`` (what castoff.ext4 compiled from the index, made again
at will) by castoff.rootfs, ``have`` by us, last. A layer is named by its diffID, so its files never change; those of a
layer that is hydrated (have not COMPLETE) only gain, until a conversion's take their place (castoff.store.replace).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from castoff.errors import CastoffError, Internal
from castoff.image.digest import Digest
from castoff.store.have import Have
from castoff.store.locks import Pin, hold

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["StoredLayer", "find_layer", "finish_layer", "is_broken", "layer_directories", "layer_path"]


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer on this host; it is not pruned while this value lives."""

    diff_id: Digest
    path: Path
    have: Have
    pin: Pin = field(repr=False, compare=False)

    @property
    def complete(self) -> bool:
        """Whether all of its segment is here."""
        return self.have.complete

    @property
    def segment(self) -> Path:
        return self.path / "segment"

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def tables(self) -> Path:
        return self.path / "tables"

    def present(self) -> NDArray[np.bool_]:
        """[C] which chunks are here now.

        Raises:
            NotFound, Invalid: ``have`` is gone, or broken.
        """
        from castoff.store.hydration import present_chunks  # numpy, which the warm path must not import

        return present_chunks(self.path)

    def touch(self) -> None:
        """It was used now: prune goes by this."""
        os.utime(self.path)


def layer_path(root: Path, diff_id: Digest) -> Path:
    """Where a layer is, or would be."""
    return root / "layers" / diff_id.hex


def find_layer(root: Path, diff_id: Digest) -> StoredLayer | None:
    """The layer, pinned; None where it is not here.

    Raises:
        Invalid: Its ``have`` is broken.
    """
    path = layer_path(root, diff_id)
    pin = hold(path)
    if pin is None:
        return None
    have = Have.read(path / "have")
    return None if have is None else StoredLayer(diff_id, path, have, pin)


def is_broken(path: Path) -> bool:
    """Whether something is at a layer's place that is neither a whole layer nor one that comes in."""
    if not path.exists():
        return False
    try:
        return Have.read(path / "have") is None
    except CastoffError:
        return True


def finish_layer(directory: Path) -> None:
    """Writes ``have`` into a builder's directory, whose segment is whole: flushed first, so that the bits tell the truth."""
    for name in ("segment", "index"):
        if not (directory / name).is_file():
            raise Internal(f"the converter left no {name} in {directory}")
    segment = directory / "segment"
    with segment.open("rb") as file:
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    (directory / "have").write_bytes(Have.full(size).to_bytes())


def layer_directories(root: Path) -> Iterator[Path]:
    """The layers' directories, in the order of their names."""
    yield from sorted((root / "layers").iterdir())
