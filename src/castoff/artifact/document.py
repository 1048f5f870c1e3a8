"""The manifest of whatever refers to an image: written the same way each time, so that its digest follows from its values.

Source: OCI image spec 1.1, manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from castoff.image import media
from castoff.image.digest import Digest

__all__ = ["EMPTY", "Row", "encode_referrer"]

Row = Mapping[str, Any]
"""A descriptor."""
EMPTY: Final[Row] = {"mediaType": media.OCI_EMPTY, "digest": str(Digest.of(media.EMPTY_JSON)), "size": len(media.EMPTY_JSON)}
"""Of the blob ``media.EMPTY_JSON``, which every such manifest has for its config."""


def encode_referrer(artifact_type: str, *, layers: Sequence[Row], subject: Row, annotations: Mapping[str, str]) -> bytes:
    """The manifest's bytes.

    Args:
        artifact_type: What it is.
        layers: Its blobs.
        subject: The image's manifest.
        annotations: Its own.
    """
    document = {
        "schemaVersion": 2,
        "mediaType": media.OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": EMPTY,
        "layers": layers,
        "subject": subject,
        "annotations": annotations,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
