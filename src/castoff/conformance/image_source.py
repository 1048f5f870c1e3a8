"""What every image source promises, as one function that an adapter's tests call.

    await check_image_source(lambda: MySource(...), Platform(), layers=[b"...", b"..."])

It raises AssertionError with what was found. pytest is not needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from castoff.errors import NotFound
from castoff.image.digest import Digest
from castoff.image.image import Image, Layer, Platform
from castoff.image.source import ImageSource
from castoff.image.verify import Verifier

__all__ = ["check_image_source"]

_PIECE = 1 << 20
_NOWHERE = Platform("plan9", "mips")


async def check_image_source(open_source: Callable[[], ImageSource], platform: Platform, layers: Sequence[bytes]) -> None:
    """Runs all of it.

    Args:
        open_source: Opens the source under test, anew each time.
        platform: One that the image has.
        layers: The blobs of its layers, lowest first. One at least should have several MiB.
    """
    source = open_source()
    try:
        image = await source.resolve(platform)
        _check_image(image, platform, layers)
        await _check_blobs(source, image, layers)
        await _check_left_early(source, image)
    finally:
        await source.close()
    await _check_stable(open_source, platform, image)
    await _check_wrong_platform(open_source)


def _check_image(image: Image, platform: Platform, layers: Sequence[bytes]) -> None:
    assert (image.platform.os, image.platform.architecture) == (platform.os, platform.architecture), f"is for {image.platform}"
    assert len(image.layers) == len(layers), f"{len(image.layers)} layers, not {len(layers)}"
    for number, (layer, data) in enumerate(zip(image.layers, layers, strict=True)):
        assert layer.size == len(data), f"layer {number} has {layer.size} bytes, not {len(data)}"
        assert layer.digest == Digest.of(data), f"layer {number} is {layer.digest}"


async def _check_blobs(source: ImageSource, image: Image, layers: Sequence[bytes]) -> None:
    """Blobs open at the same time, several times over, and give the right bytes in the promised pieces."""
    found = await asyncio.gather(*(_read(source, layer) for layer in [*image.layers, *image.layers]))
    assert found == [*layers, *layers], "a blob's bytes are others than its layer's"


async def _read(source: ImageSource, layer: Layer) -> bytes:
    verifier = Verifier(f"layer {layer.digest}", layer.digest, layer.size)
    pieces = []
    async with source.open_blob(layer) as blob:
        async for piece in blob:
            assert 0 < len(piece) <= _PIECE, f"a piece of {len(piece)} bytes"
            verifier.update(piece)
            pieces.append(piece)
    verifier.finish()
    return b"".join(pieces)


async def _check_left_early(source: ImageSource, image: Image) -> None:
    """A blob that is left after its first piece, or by cancellation, leaves nothing behind and can be opened again."""
    largest = max(image.layers, key=lambda layer: layer.size)
    async with source.open_blob(largest) as blob:
        async for _ in blob:
            break
    task = asyncio.create_task(_read(source, largest))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await _read(source, largest)


async def _check_stable(open_source: Callable[[], ImageSource], platform: Platform, image: Image) -> None:
    source = open_source()
    try:
        again = await source.resolve(platform)
    finally:
        await source.close()
    assert again == image, f"the second resolve gives {again}, the first gave {image}"


async def _check_wrong_platform(open_source: Callable[[], ImageSource]) -> None:
    source = open_source()
    try:
        await source.resolve(_NOWHERE)
    except NotFound as error:
        assert error.what and error.hint, "a wrong platform is refused without a word"
    else:
        raise AssertionError(f"an image for {_NOWHERE} was found")
    finally:
        await source.close()
