"""A signature: this key's owner says that this artifact is what this image becomes.

It signs ``castoff rootfs artifact v1``, the image's digest and the artifact's, a line each. So it is worth nothing for
another image (an older build of the same tag is another image) nor for another artifact. It travels as a referrer of the
image, beside the artifact; four annotations hold all of it, and registries repeat those in their lists of referrers, so
that one request finds artifact and signatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from castoff.artifact.document import EMPTY, encode_referrer
from castoff.artifact.keys import HostKey, PublicKey, decode_signature, encode_signature
from castoff.errors import Invalid
from castoff.image.digest import Digest

__all__ = ["SIGNATURE_TYPE", "Signature", "is_for", "read_signature", "sign", "signature_manifest"]

SIGNATURE_TYPE: Final = "application/vnd.castoff.signature.v1"
"""The ``artifactType`` of a signature's manifest."""

KEY: Final = "vnd.castoff.signature.key"
"""Annotation: the public key, as :class:`castoff.artifact.keys.PublicKey` writes it."""
IMAGE: Final = "vnd.castoff.signature.image"
"""Annotation: the digest of the image's manifest; in an index of several images it tells whose signature it is."""
ARTIFACT: Final = "vnd.castoff.signature.artifact"
"""Annotation: the digest of the artifact's manifest."""
VALUE: Final = "vnd.castoff.signature.value"
"""Annotation: the 64 bytes of the signature, in URL-safe base64 without padding."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as it came in or goes out; true only once :meth:`holds` said so."""

    key: PublicKey
    image: Digest
    artifact: Digest
    value: bytes

    def holds(self) -> bool:
        """Whether the key's owner signed that the artifact is the image's."""
        return self.key.verifies(self.value, _message(self.image, self.artifact))

    def annotations(self) -> dict[str, str]:
        """As a manifest carries it."""
        value = encode_signature(self.value)
        return {KEY: str(self.key), IMAGE: str(self.image), ARTIFACT: str(self.artifact), VALUE: value}


def sign(key: HostKey, *, image: Digest, artifact: Digest) -> Signature:
    """Signs an artifact.

    Args:
        key: This host's.
        image: Digest of the image's manifest.
        artifact: Digest of the artifact's manifest.
    """
    return Signature(key.public, image, artifact, key.sign(_message(image, artifact)))


def signature_manifest(signature: Signature, *, media_type: str, size: int) -> bytes:
    """The manifest that carries a signature to a registry: the same bytes each time. Its one blob is ``media.EMPTY_JSON``.

    Args:
        signature: What it carries.
        media_type: Of the image's manifest.
        size: Bytes of it.
    """
    subject = {"mediaType": media_type, "digest": str(signature.image), "size": size}
    return encode_referrer(SIGNATURE_TYPE, layers=[EMPTY], subject=subject, annotations=signature.annotations())


def is_for(annotations: Mapping[str, str], image: Digest) -> bool:
    """Whether they say of themselves that they are a signature's for ``image``."""
    return KEY in annotations and annotations.get(IMAGE) == str(image)


def read_signature(annotations: Mapping[str, str]) -> Signature:
    """The signature that annotations hold; unchecked.

    Raises:
        Invalid: They hold none.
    """
    try:
        key, image, artifact, value = (annotations[name] for name in (KEY, IMAGE, ARTIFACT, VALUE))
    except KeyError as error:
        raise Invalid(f"it has no annotation {error.args[0]}") from error
    return Signature(PublicKey.parse(key), Digest.parse(image), Digest.parse(artifact), decode_signature(value))


def _message(image: Digest, artifact: Digest) -> bytes:
    return f"castoff rootfs artifact v1\n{image}\n{artifact}\n".encode("ascii")
