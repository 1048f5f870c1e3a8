"""Layers of generated data: of any size, to see whether memory and speed stay flat, and of any number of entries."""

from __future__ import annotations

import io
import random
import tarfile
import zlib
from collections.abc import Callable

from bench.images.layout import EPOCH

__all__ = ["filler", "small_files"]

_PIECE = 1 << 20
_PIECES = 64


def _pool() -> list[bytes]:
    """64 MiB that gzip shrinks to about a third, as it does programs and text: a fifth noise, the rest drawn from few words."""
    generator = random.Random(20231114)
    words = [generator.randbytes(generator.randint(8, 64)) for _ in range(400)]
    pieces = []
    for _ in range(_PIECES):
        text = b"".join(generator.choices(words, k=_PIECE // 30))
        noise = generator.randbytes(_PIECE // 5)
        pieces.append((noise + text)[:_PIECE].ljust(_PIECE, b"\0"))
    return pieces


def filler(size: int) -> Callable[[tarfile.TarFile], None]:
    """A filler for :meth:`Layout.add_layer`: files of 16 MiB and some of 40 KiB, ``size`` bytes in all.

    No two megabytes are alike: each piece carries its number, so that neither side of a comparison may find a repetition.
    """
    pieces = _pool()

    def content(number: int, length: int) -> bytes:
        parts = []
        for index in range(0, length, _PIECE):
            stamp = f"{number}/{index}".encode()
            piece = pieces[zlib.crc32(stamp) % _PIECES]
            parts.append(stamp + piece[len(stamp) : min(_PIECE, length - index)])
        return b"".join(parts)

    def fill(target: tarfile.TarFile) -> None:
        left, number = size, 0
        while left > 0:
            length = min(left, 40 << 10 if number % 4 else 16 << 20)
            info = tarfile.TarInfo(f"data/{number // 1000:04}/{number:08}.bin")
            info.size, info.mtime = length, EPOCH
            target.addfile(info, io.BytesIO(content(number, length)))
            left -= length
            number += 1

    return fill


def small_files(first: int, count: int) -> Callable[[tarfile.TarFile], None]:
    """A filler of ``count`` files of up to 2 KB, 50 to a directory, numbered from ``first``, and their directories."""

    def fill(target: tarfile.TarFile) -> None:
        generator = random.Random(first)
        made: set[str] = set()
        for number in range(first, first + count):
            for name in ("tree", f"tree/{number // 5000:04}", f"tree/{number // 5000:04}/{number // 50:06}"):
                if name not in made:
                    made.add(name)
                    directory = tarfile.TarInfo(name)
                    directory.type, directory.mode, directory.mtime = tarfile.DIRTYPE, 0o755, EPOCH
                    target.addfile(directory)
            info = tarfile.TarInfo(f"tree/{number // 5000:04}/{number // 50:06}/{number:08}.txt")
            info.size, info.mtime = generator.randrange(2000), EPOCH + number
            target.addfile(info, io.BytesIO(generator.randbytes(info.size)))

    return fill
