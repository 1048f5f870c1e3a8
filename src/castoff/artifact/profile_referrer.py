"""How a boot profile refers to its image in a registry: a manifest whose annotations tell, and prove, all that a create needs.

Registries repeat a manifest's annotations in their lists of referrers (OCI distribution spec 1.1, "Listing Referrers"), so the
one request that lists them finds the profile, its signer and its hot pack's blob, whose GET may start at once. What is signed
is ``castoff boot profile v1``, the image, both blobs with their sizes, and how many boots of what time it rests on, a line
each. docs/formats.md has it ("Boot profile").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from castoff.artifact.artifact import Blob
from castoff.artifact.document import encode_referrer
from castoff.artifact.keys import HostKey, PublicKey, decode_signature, encode_signature
from castoff.errors import Invalid
from castoff.image.digest import Digest

__all__ = [
    "HOT_PACK_TYPE",
    "PROFILE_BLOB_TYPE",
    "PROFILE_TYPE",
    "ProfileReferrer",
    "profile_manifest",
    "read_profile_referrer",
    "sign_profile",
]

PROFILE_TYPE: Final = "application/vnd.castoff.profile.v1"
"""The ``artifactType`` of a profile's manifest."""
PROFILE_BLOB_TYPE: Final = "application/vnd.castoff.profile.v1+json"
HOT_PACK_TYPE: Final = "application/vnd.castoff.hot-pack.v1"

_PREFIX: Final = "vnd.castoff.profile."
IMAGE: Final = f"{_PREFIX}image"
"""Annotation: the digest of the image's manifest, the subject."""
BLOB: Final = f"{_PREFIX}blob"
"""Annotation: digest, a space, bytes of the profile's blob."""
HOT_PACK: Final = f"{_PREFIX}hot-pack"
"""Annotation: likewise of the hot pack."""
BOOTS: Final = f"{_PREFIX}boots"
"""Annotation: boots that it rests on."""
RECORDED: Final = f"{_PREFIX}recorded"
"""Annotation: when the newest of them was, in seconds since 1970."""
KEY: Final = f"{_PREFIX}key"
"""Annotation: who signed."""
VALUE: Final = f"{_PREFIX}signature"
"""Annotation: the 64 bytes of the signature, in URL-safe base64 without padding."""

MAX_PROFILE: Final = 4 << 20
MAX_HOT_PACK: Final = 1 << 36

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,18}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class ProfileReferrer:
    """A published profile; true only once :meth:`holds` said so."""

    image: Digest
    """Of the image's manifest."""
    blob: Blob
    """The profile (castoff.hydrate.profile_file)."""
    hot_pack: Blob
    boots: int
    """Boots that it rests on."""
    recorded: int
    """When the newest of them was, in seconds since 1970."""
    key: PublicKey
    value: bytes = field(repr=False)
    """The signature."""

    def holds(self) -> bool:
        """Whether the key's owner signed all of this."""
        return self.key.verifies(self.value, _message(self.image, self._facts()))

    def annotations(self) -> dict[str, str]:
        """As a manifest carries it."""
        value = encode_signature(self.value)
        return {IMAGE: str(self.image), **self._facts(), KEY: str(self.key), VALUE: value}

    def _facts(self) -> dict[str, str]:
        return _facts(self.blob, self.hot_pack, self.boots, self.recorded)


def sign_profile(key: HostKey, *, image: Digest, blob: Blob, hot_pack: Blob, boots: int, recorded: int) -> ProfileReferrer:
    """What is to be published, signed by this host's key."""
    value = key.sign(_message(image, _facts(blob, hot_pack, boots, recorded)))
    return ProfileReferrer(image, blob, hot_pack, boots, recorded, key.public, value)


def profile_manifest(referrer: ProfileReferrer, *, media_type: str, size: int) -> bytes:
    """The manifest; the same bytes each time. Besides its two blobs it has one, ``media.EMPTY_JSON``.

    Args:
        referrer: What it tells.
        media_type: Of the image's manifest.
        size: Bytes of it.
    """
    return encode_referrer(
        PROFILE_TYPE,
        layers=[_row(PROFILE_BLOB_TYPE, referrer.blob), _row(HOT_PACK_TYPE, referrer.hot_pack)],
        subject={"mediaType": media_type, "digest": str(referrer.image), "size": size},
        annotations=referrer.annotations(),
    )


def read_profile_referrer(annotations: Mapping[str, str]) -> ProfileReferrer:
    """What annotations tell; unchecked but for its form.

    Raises:
        Invalid: They tell nothing of a profile.
    """
    try:
        image, blob, hot, boots, recorded, key, value = (
            annotations[name] for name in (IMAGE, BLOB, HOT_PACK, BOOTS, RECORDED, KEY, VALUE)
        )
    except KeyError as error:
        raise Invalid(f"it has no annotation {error.args[0]}") from error
    return ProfileReferrer(
        Digest.parse(image),
        _blob(blob, MAX_PROFILE),
        _blob(hot, MAX_HOT_PACK),
        _number(boots, 1024),
        _number(recorded, 1 << 40),
        PublicKey.parse(key),
        decode_signature(value),
    )


def _facts(blob: Blob, hot_pack: Blob, boots: int, recorded: int) -> dict[str, str]:
    return {
        BLOB: f"{blob.digest} {blob.size}",
        HOT_PACK: f"{hot_pack.digest} {hot_pack.size}",
        BOOTS: str(boots),
        RECORDED: str(recorded),
    }


def _message(image: Digest, facts: Mapping[str, str]) -> bytes:
    return "\n".join(["castoff boot profile v1", str(image), *facts.values(), ""]).encode("ascii")


def _row(kind: str, blob: Blob) -> dict[str, Any]:
    return {"mediaType": kind, "digest": str(blob.digest), "size": blob.size}


def _blob(text: str, limit: int) -> Blob:
    digest, _, size = text.partition(" ")
    return Blob(Digest.parse(digest), _number(size, limit))


def _number(text: str, limit: int) -> int:
    """Written in the one way that there is, so that what was signed is what is written."""
    if _NUMBER.match(text) is None or int(text) > limit:
        raise Invalid(f"{text[:100]!r} is not a number from 1 to {limit}")
    return int(text)
