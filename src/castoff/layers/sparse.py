"""Maps of sparse files: GNU's old format, and the pax formats 0.0, 0.1 and 1.0 (GNU tar manual, "Sparse Formats").

A map is a list of data regions, ``(offset, length)``, whose bytes follow one another in the archive.
"""

from __future__ import annotations

from collections.abc import Callable

from castoff.errors import Invalid
from castoff.layers import pax

__all__ = ["Regions", "check", "old_gnu", "pax_0", "pax_1", "repeated"]

Regions = list[tuple[int, int]]

_LIMIT = 1 << 44
"""Bytes: ext4's largest file has 2^32 blocks of 4 KiB."""


def check(regions: Regions, size: int, stored: int) -> Regions:
    """``regions`` without empty ones.

    Raises:
        Invalid: They overlap, descend, pass the file's end, or are not as many bytes as are stored.
    """
    end = 0
    total = 0
    for offset, length in regions:
        if offset < end or length < 0 or offset + length > size:
            raise Invalid(f"a sparse map is broken: {length} bytes at {offset} of a file of {size}, after {end}")
        end = offset + length
        total += length
    if total != stored:
        raise Invalid(f"a sparse map has {total} bytes of data and the archive {stored}")
    return [region for region in regions if region[1]]


def old_gnu(header: bytes, more: Callable[[], bytes], number: Callable[[bytes], int], limit: int) -> tuple[int, Regions]:
    """The real size and the map of a type ``S`` header; ``more`` yields the extension headers that follow it."""
    size = number(header[483:495])
    regions: Regions = []
    block, start, count, extended = header, 386, 4, header[482]
    while True:
        for at in range(start, start + 24 * count, 24):
            if not block[at]:
                break
            regions.append((number(block[at : at + 12]), number(block[at + 12 : at + 24])))
        if not extended:
            return size, regions
        if len(regions) > limit:
            raise Invalid(f"a sparse map has more than {limit} regions")
        block, start, count = more(), 0, 21
        extended = block[504]


def repeated(records: list[tuple[bytes, bytes]]) -> bytes | None:
    """Format 0.0 repeats two keys for each region: its map as format 0.1 writes it; None where there is none."""
    values = [(key, value) for key, value in records if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
    for index, (key, _) in enumerate(values):
        if key != (b"GNU.sparse.offset", b"GNU.sparse.numbytes")[index % 2]:
            raise Invalid("a sparse map's offsets and lengths do not alternate")
    return b",".join(value for _, value in values) if values else None


def pax_0(text: bytes) -> Regions:
    """The map of formats 0.0 and 0.1: ``offset,length,offset,length...``."""
    numbers = [pax.integer(b"GNU.sparse.map", number, _LIMIT) for number in text.split(b",")] if text else []
    if len(numbers) % 2:
        raise Invalid("a sparse map has an offset without a length")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def pax_1(more: Callable[[], bytes], limit: int) -> tuple[int, Regions]:
    """The map of format 1.0, decimal lines in the blocks before the data; returns the bytes read, too."""
    text = more()
    blocks = 1
    lines = 0
    needed = 1
    at = 0
    numbers: list[int] = []
    while True:
        end = text.find(b"\n", at)
        if end < 0 or len(numbers) > 2 * limit + 1:
            if len(text) - at > 64 or blocks * 512 > limit * 44:
                raise Invalid("a sparse map is broken or too long")
            text = text[at:] + more()
            at = 0
            blocks += 1
            continue
        numbers.append(pax.integer(b"GNU.sparse.map", text[at:end], _LIMIT))
        at = end + 1
        lines += 1
        if lines == 1:
            needed = 1 + 2 * numbers[0]
            if numbers[0] > limit:
                raise Invalid(f"a sparse map has {numbers[0]} regions; {limit} are allowed")
        if lines == needed:
            return blocks * 512, list(zip(numbers[1::2], numbers[2::2], strict=True))
