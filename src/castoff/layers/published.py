"""The published form of a layer index: with the chunks' places in the pack, in one zstd frame (docs/formats.md)."""

from __future__ import annotations

import zstandard

from castoff.errors import Invalid, LimitExceeded
from castoff.layers.index import LayerIndex, decode_index, encode_index
from castoff.layers.settings import Limits
from castoff.layers.toc import CHUNK

__all__ = ["publish_index", "read_published"]

LEVEL = 9
"""An index of 28,000 entries and 5,700 chunks: 402 KB in 18 ms; level 19 makes 381 KB in 187 ms, level 3 417 KB in 4 ms."""
_ENTRY = 128
"""Bytes that an entry may take: the format takes under 60, with names as images have them."""


def publish_index(index: LayerIndex) -> bytes:
    """The blob of an index whose locations are a pack's (``dataclasses.replace(index, locations=pack.locations)``)."""
    data = b"".join(encode_index(index))
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True).compress(data)


def read_published(data: bytes, limits: Limits | None = None) -> LayerIndex:
    """Reads a published index, whose sha256 the caller compared with what a signed artifact says.

    Raises:
        Invalid: It is no such index; ``LimitExceeded``: it is over the limits.
    """
    limits = limits or Limits()
    try:
        size = zstandard.get_frame_parameters(data).content_size
        most = _most(limits)
        if size > most:  # also where the frame does not tell: all bits are set then
            raise LimitExceeded("a published layer index, in bytes,", limit=most, setting="layers.max_entries")
        plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Invalid(f"a published layer index cannot be decompressed: {error}") from error
    return decode_index(plain, limits)


def _most(limits: Limits) -> int:
    """Bytes of the largest index: what may be decompressed before anything in it is checked."""
    return _ENTRY * limits.max_entries + limits.max_strings + 48 * (limits.max_layer_size // CHUNK + 1)
