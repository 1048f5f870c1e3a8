"""Hashes a stored segment again and compares it with its index."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from castoff.errors import NotFound, Unavailable
from castoff.layers.index import LayerIndex, read_index
from castoff.layers.pipeline import Buffer
from castoff.layers.toc import CHUNK

__all__ = ["verify_segment"]

_SPAN = 4 * CHUNK


def verify_segment(directory: Path, *, threads: int | None = None) -> list[int]:
    """The numbers of the chunks of ``directory/segment`` that are not what ``directory/index`` says; blocking.

    Raises:
        NotFound: No segment or no index.
        Invalid: The index is damaged.
        Unavailable: The disk failed.
    """
    index = read_index(directory / "index")
    path = directory / "segment"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such segment") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    workers = threads or len(os.sched_getaffinity(0))
    count = len(index.digests)
    share = -(-count // workers) if count else 1
    try:
        with ThreadPoolExecutor(workers, "verify") as pool:
            parts = pool.map(lambda first: _bad(descriptor, index, first, min(first + share, count)), range(0, count, share))
            bad = [chunk for part in parts for chunk in part]
        if os.fstat(descriptor).st_size != index.segment_size:
            bad = bad or [max(count - 1, 0)]
        return bad
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _bad(descriptor: int, index: LayerIndex, first: int, end: int) -> list[int]:
    """The wrong chunks from ``first`` to ``end``."""
    buffer = Buffer(_SPAN).view
    bad: list[int] = []
    for start in range(first, end, _SPAN // CHUNK):
        stop = min(start + _SPAN // CHUNK, end)
        size = min(stop * CHUNK, index.segment_size) - start * CHUNK
        filled = 0
        while filled < size and (got := os.preadv(descriptor, [buffer[filled:size]], start * CHUNK + filled)):
            filled += got
        for chunk in range(start, stop):
            data = buffer[(chunk - start) * CHUNK : min((chunk - start + 1) * CHUNK, size)]
            short = filled < min((chunk - start + 1) * CHUNK, size)
            if short or blake3(data).digest() != index.digests[chunk].tobytes():
                bad.append(chunk)
    return bad
