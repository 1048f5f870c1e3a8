"""Which of the artifacts that refer to an image count: those that a trusted key signed for this very image.

Pure functions over what a registry said, which is hostile: any row may be a lie, and there may be thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from castoff.artifact.artifact import ARTIFACT_TYPE, Artifact
from castoff.artifact.keys import PublicKey
from castoff.artifact.manifest import parse_manifest
from castoff.artifact.signature import SIGNATURE_TYPE, Signature, read_signature
from castoff.artifact.trust import Trust
from castoff.errors import Invalid
from castoff.image.digest import Digest
from castoff.image.image import Image
from castoff.image.referrers import Referrer
from castoff.image.verify import check

__all__ = ["Candidate", "Sorted", "read_artifact", "sort_signatures"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact that a trusted key signed; its manifest is still to be read."""

    digest: Digest
    signer: PublicKey


@dataclass(frozen=True, slots=True)
class Sorted:
    """What a registry's rows are worth; what counts for nothing has a line each."""

    candidates: tuple[Candidate, ...]
    """Best first: of this host's own key, then in the order of the trusted keys, then in that of the registry."""
    wrong: tuple[str, ...]
    """Of signatures that are broken, or claim what is not so."""
    unsigned: tuple[str, ...]
    """Of artifacts that nobody signed."""
    strange: tuple[str, ...]
    """Of signers that nobody said to trust."""


def sort_signatures(rows: Sequence[Referrer], image: Image, trust: Trust, where: str) -> Sorted:
    """Checks the signatures among ``rows`` against the keys that count. Those of others cost no computation.

    Args:
        rows: What refers to the image, as a registry lists it.
        image: The image that is wanted.
        trust: The keys.
        where: The repository, for the lines.
    """
    good: dict[Digest, Candidate] = {}
    signatures, wrong = _read(rows, where)
    rank = {known.key: n for n, known in enumerate(trust.keys)}
    for signature in sorted(signatures, key=lambda signature: rank.get(signature.key, len(rank))):
        key = signature.key
        if signature.image != image.digest:
            wrong.append(f"a signature in {where} is for the image {signature.image} and not for {image.digest}: refused")
        elif key in rank and not signature.holds():
            wrong.append(
                f"a signature in {where} claims that {key.fingerprint} signed the artifact {signature.artifact} for"
                f" {image.digest}, and it did not: refused"
            )
        elif key in rank:
            good.setdefault(signature.artifact, Candidate(signature.artifact, key))
    signed = {signature.artifact for signature in signatures}
    unsigned = [
        f"the artifact {row.digest} of {image.reference} in {where} has no signature: refused"
        for row in rows
        if row.artifact_type == ARTIFACT_TYPE and row.digest not in signed
    ]
    strangers = dict.fromkeys(one.key for one in signatures if one.key not in rank and one.image == image.digest)
    strange = [
        f"{where} has an artifact of {image.reference} by a key that is not trusted here, fingerprint {key.fingerprint};"
        f" if you know it: castoff trust add {key}"
        for key in strangers
    ]
    return Sorted(tuple(good.values()), tuple(wrong), tuple(unsigned), tuple(strange))


def _read(rows: Sequence[Referrer], where: str) -> tuple[list[Signature], list[str]]:
    signatures: list[Signature] = []
    broken: list[str] = []
    for row in rows:
        if row.artifact_type != SIGNATURE_TYPE:
            continue
        try:
            signatures.append(read_signature(row.annotations))
        except Invalid as error:
            broken.append(f"the signature {row.digest} in {where} cannot be read: {error.what}: refused")
    return signatures, broken


def read_artifact(data: bytes, candidate: Candidate, image: Image, repository: str) -> Artifact:
    """The artifact, from the bytes of its manifest.

    Args:
        data: As they came.
        candidate: Whose they should be.
        image: The image that is wanted.
        repository: Where it lies.

    Raises:
        DigestMismatch: They are other bytes than were signed.
        Invalid: It is no artifact of this image.
    """
    what = f"the artifact {candidate.digest} in {repository}"
    manifest = parse_manifest(what, check(what, data, candidate.digest))
    if manifest.subject.digest != image.digest:
        raise Invalid(f"{what} is of the image {manifest.subject.digest} and not of {image.digest}")
    wanted = tuple(dict.fromkeys(layer.diff_id for layer in image.layers))
    has = tuple(layer.diff_id for layer in manifest.layers)
    if has != wanted:
        at = next((n for n, pair in enumerate(zip(has, wanted, strict=False)) if pair[0] != pair[1]), min(len(has), len(wanted)))
        raise Invalid(f"{what} has {len(has)} layers, the image {len(wanted)}, and they differ from layer {at} on")
    return Artifact(repository, candidate.digest, image.digest, manifest.layers, str(candidate.signer))
