"""One layer in one pass: its blob is verified, decompressed, hashed, parsed and written as a segment while it comes in.

Five threads a layer (six where its pack is wanted too), joined by queues of large buffers::

    blob -> inflate -> digest -> parse -> hash [ -> pack ] -> write -> segment, index [, pack]

The index is written last, after the blob hashed to the layer's digest and the uncompressed stream to its diffID: a
directory with an index holds a whole, verified layer.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import numpy as np

from castoff import timeline
from castoff.errors import DigestMismatch, Invalid, LimitExceeded, Unsupported
from castoff.image.image import Layer
from castoff.image.media import compression_of
from castoff.image.verify import Verifier
from castoff.layers import budget
from castoff.layers.blocks import Blocks
from castoff.layers.content import read_layer
from castoff.layers.feed import Feed
from castoff.layers.index import LayerIndex, Locations, write_index
from castoff.layers.inflate import HEAD, Stream, open_decompressor, sniff
from castoff.layers.pack import Pack
from castoff.layers.packing import HELD, pack_buffers
from castoff.layers.pipeline import Buffer, Channel, Pipeline, Pool
from castoff.layers.rows import Rows
from castoff.layers.segment import STAGING, Segment
from castoff.layers.settings import Limits
from castoff.layers.toc import CHUNK
from castoff.layers.writer import SegmentFile, translate

__all__ = ["convert"]

_BUFFER = 1 << 20
_BUFFERS = 6
_STAGINGS = 6
_COST = 16 << 20
"""Bytes that a conversion has at once: pieces on their way in, the buffers above, igzip's own, stacks."""
_PACKING = 12 << 20
"""Bytes that packing takes besides: further buffers, frames, compressors."""
_RATIO_FROM = 1 << 30


async def convert(
    layer: Layer, blob: AsyncIterator[bytes], directory: Path, limits: Limits, *, pack: Path | None = None
) -> Pack | None:
    """Writes ``directory/segment`` and ``directory/index`` of a layer, both on disk when it returns.

    Args:
        layer: The layer; it is accepted only if ``blob`` hashes to its digest and the tar inside to its diffID.
        blob: The layer's compressed bytes, in pieces.
        directory: An empty directory of the caller's. After a failure the caller deletes it.
        limits: What the layer may cost.
        pack: A file, not there yet, for the layer's pack, made in the same pass; after a failure the caller deletes it.

    Returns:
        The pack, if one was asked for.

    Raises:
        Invalid: The blob, its compression or the tar is broken; ``DigestMismatch``: it is another; ``LimitExceeded``.
        NoSpace: The disk is full.
        CastoffError: As ``blob`` raises.
    """
    with timeline.step("layers.convert", total=layer.size, layer=str(layer.diff_id)) as step:
        if compression_of(layer.media_type) is None:
            raise Unsupported(f"layer {layer.digest} has the media type {layer.media_type!a}, which castoff does not know")
        pieces = aiter(blob)
        head = await _head(pieces, step)
        try:
            stream = sniff(head, limits)
            cost = _COST if pack is None else _COST + _PACKING
            async with budget.shared.take(cost + stream.window, limits.memory):
                conversion = _Conversion(layer, directory, limits, stream, pack)
                await _run(conversion, head, pieces, step)
                return conversion.pack
        except Invalid as error:
            error.what = f"layer {layer.digest}: {error.what}"
            raise


async def _head(pieces: AsyncIterator[bytes], step: timeline.Step) -> bytes:
    """As many pieces as tell how the blob is compressed."""
    head = b""
    while len(head) < HEAD and (piece := await anext(pieces, None)) is not None:
        head += piece
    step.advance(len(head))
    return head


async def _run(conversion: _Conversion, head: bytes, pieces: AsyncIterator[bytes], step: timeline.Step) -> None:
    """Feeds the conversion's threads until they have ended, well or not."""
    pump = asyncio.create_task(conversion.pump(head, pieces, step))
    try:
        await asyncio.wait((pump, conversion.done), return_when=asyncio.FIRST_COMPLETED)
        if pump.done():
            pump.result()  # raises what the blob raised
            await asyncio.wait((conversion.done,))
    except BaseException as error:
        conversion.pipeline.stop(error)
        raise
    finally:
        try:
            await _settle(pump, conversion.done)
        finally:
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

    def __init__(self, layer: Layer, directory: Path, limits: Limits, stream: Stream, pack: Path | None) -> None:
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self.pipeline = Pipeline("layer", partial(loop.call_soon_threadsafe, self.done.set_result, None))
        self._layer = layer
        self._directory = directory
        self._limits = limits
        self._stream = stream
        self._file = SegmentFile(directory / "segment", self._to_come)
        self._feed = Feed(self.pipeline)
        self._pool = Pool(self.pipeline, _BUFFERS, _BUFFER)
        self._staging = Pool(self.pipeline, _STAGINGS if pack is None else _STAGINGS + HELD, STAGING)
        self._to_digest: Channel[Buffer | bytes | Invalid] = self.pipeline.channel()
        self._to_parse: Channel[Buffer] = self.pipeline.channel()
        self._to_hash: Channel[Buffer] = self.pipeline.channel()
        self._to_write: Channel[Buffer] = self.pipeline.channel()
        self.pack: Pack | None = None
        """What was made, once all is over."""
        self._pack_file = pack
        self._to_pack: Channel[Buffer] = self._to_write if pack is None else self.pipeline.channel()
        self._rows: Rows | None = None
        self._taken = 0
        self._total = 0
        packing = () if pack is None else (self.pack_chunks,)
        self.pipeline.start(self.inflate, self.digest, self.parse, self.hash, *packing, self.write)

    def close(self) -> None:
        """Joins the threads, which have ended, and closes the file."""
        self.pipeline.join()
        self._file.close()

    async def pump(self, head: bytes, pieces: AsyncIterator[bytes], step: timeline.Step) -> None:
        """Hands the blob's pieces to the threads."""
        await self._feed.put(head)
        async for piece in pieces:
            await self._feed.put(piece)
            step.advance(len(piece))
        self._feed.close()

    def _compressed(self) -> bytes | None:
        """The blob's next piece, which goes to be hashed too."""
        piece = self._feed.get()
        if piece is not None:
            self._to_digest.put(piece)
            self._taken += len(piece)
        return piece

    def _to_come(self, written: int) -> int:
        """An estimate of the segment's bytes after ``written``, from how the blob's bytes have unpacked so far."""
        return max(self._total * self._layer.size // max(self._taken, 1) - written, 0)

    def inflate(self) -> None:
        """Decompresses the blob into buffers.

        A stream that is broken is blamed only when the blob is the one that its digest names: the rest of it is hashed first.
        """
        try:
            self._decompress()
            self._to_digest.close()
        except LimitExceeded:
            raise
        except Invalid as error:
            while self._compressed() is not None:
                pass
            self._to_digest.put(error)

    def _decompress(self) -> None:
        """Fills buffers to their ends (the parser wants whole blocks) but for the stream's last."""
        decompressor = open_decompressor(self._stream, self._compressed)
        filled = _BUFFER
        while filled == _BUFFER:
            buffer = self._pool.take()
            filled = 0
            while filled < _BUFFER and (count := decompressor.readinto(buffer.view[filled:])):
                filled += count
            self._total += filled
            self._check_size()
            buffer.filled = filled
            self._to_digest.put(buffer)

    def _check_size(self) -> None:
        limits, total = self._limits, self._total
        if total > limits.max_layer_size:
            raise LimitExceeded("uncompressed bytes", limit=limits.max_layer_size, setting="layers.max_layer_size")
        if total > _RATIO_FROM and total > limits.max_ratio * self._layer.size:
            raise LimitExceeded("ratio of compression", limit=limits.max_ratio, setting="layers.max_ratio")

    def digest(self) -> None:
        """Hashes what was compressed and what was not; the parser learns of the stream's end only if both are right."""
        layer = self._layer
        blob = Verifier("its blob", layer.digest, layer.size)
        tar = hashlib.sha256()
        once = not self._stream.compression and layer.digest == layer.diff_id
        while (item := self._to_digest.get()) is not None:
            if isinstance(item, Buffer):
                if not once:
                    tar.update(item.view[: item.filled])
                self._to_parse.put(item)
            elif isinstance(item, Invalid):
                blob.finish()
                raise item
            else:
                blob.update(item)
                self._feed.release(len(item))
        blob.finish()
        if not once and tar.hexdigest() != layer.diff_id.hex:
            raise DigestMismatch("its uncompressed tar", expected=str(layer.diff_id), actual=f"sha256:{tar.hexdigest()}")
        self._to_parse.close()

    def parse(self) -> None:
        """Reads the tar and assembles the segment; a broken tar, too, is blamed only when the digests were right."""
        blocks = Blocks(self._to_parse, self._pool)
        try:
            self._rows = read_layer(blocks, Segment(self._to_hash, self._staging), self._limits)
        except LimitExceeded:
            raise
        except Invalid:
            blocks.drain()
            raise
        self._to_hash.close()

    def hash(self) -> None:
        """Hashes the segment's chunks."""
        self._file.digest(self._to_hash, self._to_pack)

    def pack_chunks(self) -> None:
        """Compresses the segment's chunks on their way to the disk."""
        assert self._pack_file is not None
        self.pack = pack_buffers(self._to_pack, self._to_write, self._file.zero, self._pack_file)

    def write(self) -> None:
        """Writes the segment, and at last the index."""
        self._file.write(self._to_write, self._staging)
        assert self._rows is not None
        with budget.many_entries(len(self._rows)):
            self._write_index(self._rows)
            self._rows = None

    def _write_index(self, rows: Rows) -> None:
        digests = np.frombuffer(self._file.digests, np.uint8).reshape(-1, 32)
        zero = np.frombuffer(self._file.zero, np.bool_)
        toc = rows.toc(self._file.size)
        index = LayerIndex(self._layer.diff_id, toc, CHUNK, digests, zero, Locations.local(len(digests)))
        path = self._directory / "index"
        try:
            write_index(path, index)
            sync(self._directory)
        except OSError as error:
            raise translate(error, path) from error


def sync(directory: Path) -> None:
    """Makes the names in ``directory`` last."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
