"""``lazy.map``: which chunk of which layer each hole of a rootfs wants (docs/formats.md).

A rootfs file is chunks of 256 KiB from its start; segments begin on chunks, so a chunk of the rootfs is one of a layer. The
map has a row for each that is neither zero nor without a live block in this image, ascending; the rest of the file is
always there. Twelve bytes a row: u32 chunk of the rootfs, u16 layer (place in the record), u16 zero, u32 chunk of the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid, NotFound
from castoff.layers.toc import CHUNK
from castoff.store.durable import replace_file

__all__ = ["ROW", "LazyMap", "write_map"]

ROW = np.dtype([("rootfs_chunk", "<u4"), ("layer", "<u2"), ("zero", "<u2"), ("chunk", "<u4")])


def write_map(path: Path, rootfs_chunk: NDArray[np.integer], layer: NDArray[np.integer], chunk: NDArray[np.integer]) -> None:
    """Writes a map of [N] rows, in any order."""
    rows = np.zeros(len(rootfs_chunk), ROW)
    rows["rootfs_chunk"], rows["layer"], rows["chunk"] = rootfs_chunk, layer, chunk
    rows.sort(order="rootfs_chunk")
    replace_file(path, rows.tobytes(), mode=0o600, durable=False)


class LazyMap:
    """A map, checked, in memory.

    Attributes:
        rows: [N] of ROW.
        chunks: Chunks of the whole rootfs.
    """

    def __init__(self, rows: NDArray[np.void], *, size: int, layers: int) -> None:
        """Takes rows that are ascending and within ``size`` bytes and ``layers`` layers.

        Raises:
            Invalid: They are not.
        """
        self.chunks = -(-size // CHUNK)
        chunks = rows["rootfs_chunk"]
        if (
            np.any(chunks[1:] <= chunks[:-1])
            or np.any(chunks >= self.chunks)
            or np.any(rows["layer"] >= layers)
            or np.any(rows["zero"] != 0)
        ):
            raise Invalid(f"the lazy map's {len(rows)} rows do not fit {self.chunks} chunks of {layers} layers")
        self.rows = rows
        self.row_of: list[int] = [-1] * self.chunks
        """[chunks] row of each chunk of the rootfs, -1 where it has none. A list: a look-up is 20 ns, numpy's 100."""
        for row, chunk in enumerate(chunks.tolist()):
            self.row_of[chunk] = row
        self.chunk_of: list[int] = chunks.tolist()
        """[N] chunk of the rootfs of each row."""
        self.layer_of: list[int] = rows["layer"].tolist()
        self.layer_chunk_of: list[int] = rows["chunk"].tolist()

    @classmethod
    def read(cls, path: Path, *, size: int, layers: int) -> LazyMap:
        """Reads a map.

        Args:
            path: The file.
            size: Bytes of the rootfs.
            layers: Layers in the record.

        Raises:
            NotFound: There is none.
            Invalid: It is broken.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"{path}: no such lazy map") from error
        if len(data) % ROW.itemsize:
            raise Invalid(f"{path} ends within a row")
        return cls(np.frombuffer(data, ROW), size=size, layers=layers)

    def __len__(self) -> int:
        return len(self.rows)

    def rows_in(self, start: int, end: int) -> Sequence[int]:
        """Rows that bytes ``start`` to ``end`` touch."""
        found = self.row_of[start // CHUNK : -(-max(end, start + 1) // CHUNK)]
        return [row for row in found if row >= 0]

    def by_layer(self, layer: int) -> dict[int, int]:
        """Chunk of the layer -> row, of one layer."""
        mine = np.flatnonzero(self.rows["layer"] == layer)
        return dict(zip(self.rows["chunk"][mine].tolist(), mine.tolist(), strict=True))
