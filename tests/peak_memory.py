"""Converts large synthetic layers and composes them, in a process of its own, and prints that process' peak memory in kB.

python tests/peak_memory.py DIRECTORY large|million|irregular COUNT
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np

from castoff.ext4.compose import compose
from castoff.image.digest import Digest
from castoff.image.image import Layer
from castoff.layers.convert import convert
from castoff.layers.settings import Limits
from castoff.rootfs.composition import compile_layer
from castoff.store.builds import uninterrupted

__all__: list[str] = []


def headers(names: list[bytes], size: int, kind: bytes = b"0", target: bytes = b"") -> bytes:
    """One tar header for each name, all at once: a million take a second."""
    head = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"0" * 11 + b"\0" + b" " * 8 + kind + target
    joined = b"".join(name.ljust(100, b"\0") + head.ljust(412, b"\0") for name in names)
    blocks = np.frombuffer(joined, np.uint8).reshape(-1, 512).copy()
    sums = blocks.sum(axis=1, dtype=np.int64)
    for digit in range(6):
        blocks[:, 153 - digit] = ord("0") + (sums >> 3 * digit & 7)
    blocks[:, 154] = 0
    return blocks.tobytes()


def tar(kind: str) -> Iterator[bytes]:
    """A tar of 400 MB in large files, or of a million empty ones, which are named through a symlink where it is irregular."""
    if kind == "large":
        data = bytes(range(256)) * 16384
        for number in range(100):
            yield headers([b"f%d" % number], len(data)) + data
    elif kind == "million":
        for number in range(1000):
            yield headers(_thousand(number), 0)
    elif kind == "irregular":
        yield headers([b"usr/lib"], 0, b"5") + headers([b"lib"], 0, b"2", b"usr/lib")
        for number in range(1000):
            yield headers([name.removeprefix(b"usr/") for name in _thousand(number)], 0)
    yield bytes(1024)


def _thousand(number: int) -> list[bytes]:
    return [b"usr/lib/python3/dist-packages/d%d/name-of-a-file-%d" % (number, at) for at in range(1000)]


def build(kind: str, blob: Path) -> Layer:
    """Writes the tar, gzipped."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    digest = hashlib.sha256()
    with blob.open("wb") as file:
        for part in tar(kind):
            digest.update(part)
            file.write(packer.compress(part))
        file.write(packer.flush())
    with blob.open("rb") as file:
        packed = Digest(hashlib.file_digest(file, "sha256").hexdigest())
    return Layer(packed, blob.stat().st_size, "application/vnd.oci.image.layer.v1.tar+gzip", Digest(digest.hexdigest()))


async def pieces(blob: Path) -> AsyncIterator[bytes]:
    """As a registry hands it over."""
    with blob.open("rb") as file:
        while piece := file.read(65536):
            yield piece


async def main(directory: Path, kind: str, count: int) -> None:
    """Converts ``count`` such layers at once, compiles their tables, and composes them."""
    blob = directory / "blob"
    layer = build(kind, blob)
    for number in range(count):
        (directory / str(number)).mkdir()
    await asyncio.gather(*(convert(layer, pieces(blob), directory / str(number), Limits()) for number in range(count)))
    tables = [await uninterrupted(compile_layer, directory / str(number)) for number in range(count)]
    composition = compose([(layer.diff_id, one) for one in tables])
    with (directory / "rootfs").open("wb") as file:
        composition.write(file.fileno())
    # ru_maxrss would start at what the parent had when it forked
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert peak is not None
    print(peak[1])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
