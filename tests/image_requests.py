"""From an image that oci_builder built to what a provider is asked for."""

from __future__ import annotations

from castoff.fakes.image_source import FakeImageSource
from castoff.image.digest import Digest
from castoff.image.image import Image, ImageConfig, Layer, Platform
from castoff.rootfs.provider import RootfsRequest
from oci_builder import BuiltImage

__all__ = ["request_of"]


def request_of(built: BuiltImage, *, reference: str = "test:latest") -> RootfsRequest:
    """A request for the image, with a source in memory."""
    layers = tuple(
        Layer(Digest.parse(blob.digest), len(blob.data), blob.media_type, Digest.parse(diff_id))
        for blob, diff_id in zip(built.layers, built.diff_ids, strict=True)
    )
    image = Image(reference, Digest.parse(built.digest), Platform(), ImageConfig(), layers)
    return RootfsRequest(image, FakeImageSource(image, {Digest.parse(blob.digest): blob.data for blob in built.layers}))
