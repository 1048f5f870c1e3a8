"""One layer in one pass: its blob is verified, decompressed, hashed, parsed and written as a segment while it comes in.

Four threads a layer, joined by queues of large buffers::

    blob -> inflate -> digest -> parse -> write -> segment, index

The index is written last, after the blob hashed to the layer's digest and the uncompressed stream to its diffID: a
directory with an index holds a whole, verified layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from castoff import timeline
from castoff.errors import DigestMismatch, Invalid, LimitExceeded
from castoff.image.image import Layer
from castoff.image.verify import Verifier
from castoff.layers.blocks import Blocks
from castoff.layers.content import read_layer
from castoff.layers.feed import Feed
from castoff.layers.index import LayerIndex, Locations, write_index
from castoff.layers.inflate import open_decompressor
from castoff.layers.pipeline import Buffer, Channel, Pipeline, Pool
from castoff.layers.rows import Rows
from castoff.layers.segment import STAGING, Segment
from castoff.layers.settings import Limits
from castoff.layers.toc import CHUNK
from castoff.layers.writer import SegmentFile, translate

__all__ = ["convert"]

_BUFFER = 1 << 20
_BUFFERS = 6
_STAGINGS = 3
_RATIO_FROM = 1 << 30


async def convert(layer: Layer, blob: AsyncIterator[bytes], directory: Path, limits: Limits) -> None:
    """Writes ``directory/segment`` and ``directory/index`` of a layer, both on disk when it returns.

    Args:
        layer: The layer; it is accepted only if ``blob`` hashes to its digest and the tar inside to its diffID.
        blob: The layer's compressed bytes, in pieces.
        directory: An empty directory of the caller's. After a failure the caller deletes it.
        limits: What the layer may cost.

    Raises:
        Invalid: The blob, its compression or the tar is broken; ``DigestMismatch``: it is another; ``LimitExceeded``.
        NoSpace: The disk is full.
        CastoffError: As ``blob`` raises.
    """
    with timeline.step("layers.convert", total=layer.size, layer=str(layer.diff_id)) as step:
        conversion = _Conversion(layer, directory, limits)
        pump = asyncio.create_task(conversion.pump(blob, step))
        try:
            await asyncio.wait((pump, conversion.done), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()  # raises what the blob raised
                await asyncio.wait((conversion.done,))
        except BaseException as error:
            conversion.pipeline.stop(error)
            raise
        finally:
            await _settle(pump, conversion.done)
            conversion.close()
        if conversion.pipeline.error is not None:
            raise conversion.pipeline.error


async def _settle(pump: asyncio.Task[None], done: asyncio.Future[None]) -> None:
    """Ends the pump and waits for the threads, which stop within a buffer's work; a cancellation comes through after it."""
    cancelled: asyncio.CancelledError | None = None
    pump.cancel()
    while waiting := [task for task in (pump, done) if not task.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
    if not pump.cancelled():
        pump.exception()  # seen, so that asyncio does not complain
    if cancelled is not None:
        raise cancelled


class _Conversion:
    """The stages of one conversion, and what they share."""

    def __init__(self, layer: Layer, directory: Path, limits: Limits) -> None:
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self.pipeline = Pipeline("layer", partial(loop.call_soon_threadsafe, self.done.set_result, None))
        self._layer = layer
        self._directory = directory
        self._limits = limits
        self._file = SegmentFile(directory / "segment", layer.size)
        self._feed = Feed(self.pipeline)
        self._pool = Pool(self.pipeline, _BUFFERS, _BUFFER)
        self._staging = Pool(self.pipeline, _STAGINGS, STAGING)
        self._to_digest: Channel[Buffer | bytes] = self.pipeline.channel()
        self._to_parse: Channel[Buffer] = self.pipeline.channel()
        self._to_write: Channel[Buffer] = self.pipeline.channel()
        self._rows: Rows | None = None
        self.pipeline.start(self.inflate, self.digest, self.parse, self.write)

    def close(self) -> None:
        """Joins the threads, which have ended, and closes the file."""
        self.pipeline.join()
        self._file.close()

    async def pump(self, blob: AsyncIterator[bytes], step: timeline.Step) -> None:
        """Hands the blob's pieces to the threads."""
        async for piece in blob:
            await self._feed.put(piece)
            step.advance(len(piece))
        self._feed.close()

    def _compressed(self) -> bytes | None:
        """The blob's next piece, which goes to be hashed too."""
        piece = self._feed.get()
        if piece is not None:
            self._to_digest.put(piece)
        return piece

    def inflate(self) -> None:
        """Decompresses the blob into buffers, each filled to its end (the parser wants whole blocks)."""
        with self._named():
            decompressor = open_decompressor(self._compressed, 8 << 20)
            total = 0
            while True:
                buffer = self._pool.take()
                filled = 0
                while filled < _BUFFER and (count := decompressor.readinto(buffer.view[filled:])):
                    filled += count
                total += filled
                self._check_size(total)
                buffer.filled = filled
                if filled:
                    self._to_digest.put(buffer)
                if filled < _BUFFER:
                    break
            self._to_digest.close()

    def _check_size(self, total: int) -> None:
        limits = self._limits
        if total > limits.max_layer_size:
            raise LimitExceeded("uncompressed bytes", limit=limits.max_layer_size, setting="layers.max_layer_size")
        if total > _RATIO_FROM and total > limits.max_ratio * self._layer.size:
            raise LimitExceeded("ratio of compression", limit=limits.max_ratio, setting="layers.max_ratio")

    def digest(self) -> None:
        """Hashes what was compressed and what was not; the parser learns of the stream's end only if both are right."""
        with self._named():
            layer = self._layer
            blob = Verifier(f"blob {layer.digest}", layer.digest, layer.size)
            tar = hashlib.sha256()
            while (item := self._to_digest.get()) is not None:
                if isinstance(item, Buffer):
                    tar.update(item.view[: item.filled])
                    self._to_parse.put(item)
                else:
                    blob.update(item)
            blob.finish()
            if tar.hexdigest() != layer.diff_id.hex:
                raise DigestMismatch("the uncompressed tar", expected=str(layer.diff_id), actual=f"sha256:{tar.hexdigest()}")
            self._to_parse.close()

    def parse(self) -> None:
        """Reads the tar; assembles the segment."""
        with self._named():
            blocks = Blocks(self._to_parse, self._pool)
            self._rows = read_layer(blocks, Segment(self._to_write, self._staging), self._limits)
            self._to_write.close()

    def write(self) -> None:
        """Writes the segment, and at last the index."""
        self._file.write(self._to_write, self._staging)
        assert self._rows is not None
        digests = np.frombuffer(self._file.digests, np.uint8).reshape(-1, 32)
        zero = np.frombuffer(self._file.zero, np.bool_)
        toc = self._rows.toc(self._file.size)
        index = LayerIndex(self._layer.diff_id, toc, CHUNK, digests, zero, Locations.local(len(digests)))
        path = self._directory / "index"
        try:
            write_index(path, index)
            sync(self._directory)
        except OSError as error:
            raise translate(error, path) from error

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Says of which layer an error is."""
        try:
            yield
        except (LimitExceeded, DigestMismatch) as error:
            error.what = f"layer {self._layer.digest}: {error.what}"
            raise
        except Invalid as error:
            raise Invalid(f"layer {self._layer.digest}: {error.what}", hint=error.hint) from error


def sync(directory: Path) -> None:
    """Makes the names in ``directory`` last."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
