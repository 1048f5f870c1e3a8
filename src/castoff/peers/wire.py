"""What hosts say to one another: three requests over HTTP, by the layer's diffID.

    GET /v1/layers/HEX/have?known=COUNT&wait=SECONDS
        200: a bitmap of the chunks that the host has, least significant bit first. Answered when it has other than COUNT
        chunks, or after SECONDS (``wait`` at most).
    GET /v1/layers/HEX/chunks?of=NUMBER:LENGTH,NUMBER:LENGTH...
        200: the chunks' zstd frames one after another, each of just the length that the asker's index says it has in the
        pack. So a host needs the segment alone: frames are made anew, and the same compressor makes the same bytes.
    GET /v1/layers/HEX/index
        200: the layer's published index, with the host's signature (castoff.peers.indexes): for layers that no artifact has
        yet. 202: it is being made, ask again.
    404: it does not have the layer, or not all of these chunks. 409: its compressor makes other frames. 503: it has enough to do.

``Castoff-Urgency: 0`` asks for chunks that a guest waits for. ``Castoff-Host`` is the asker's own URL, for whoever counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from castoff.errors import Invalid
from castoff.image.digest import Digest

__all__ = [
    "FRAME",
    "FRAMES",
    "HAVE_WAIT",
    "HOST_HEADER",
    "KEY_HEADER",
    "REQUEST",
    "SIGNATURE_HEADER",
    "URGENCY_HEADER",
    "chunks_target",
    "have_target",
    "index_target",
    "parse_chunks",
]

FRAMES = 64
"""Frames that one request may ask for."""
FRAME = 320 << 10
"""Bytes that a frame may have: a chunk that does not compress is a little longer than 256 KiB."""
REQUEST = 2 << 20
"""Bytes that one request asks for, unless a single frame is longer."""
HAVE_WAIT = 2.0
URGENCY_HEADER = "Castoff-Urgency"
HOST_HEADER = "Castoff-Host"
KEY_HEADER = "Castoff-Key"
SIGNATURE_HEADER = "Castoff-Signature"
_ONE = re.compile(r"(\d{1,9}):(\d{1,7})\Z", re.ASCII)


def have_target(diff_id: Digest, known: int, wait: float) -> str:
    """The target of a request for what a host has."""
    return f"/v1/layers/{diff_id.hex}/have?known={known}&wait={wait:g}"


def index_target(diff_id: Digest) -> str:
    """The target of a request for what a layer is."""
    return f"/v1/layers/{diff_id.hex}/index"


def chunks_target(diff_id: Digest, frames: Sequence[tuple[int, int]]) -> str:
    """The target of a request for frames, (number, length) each."""
    return f"/v1/layers/{diff_id.hex}/chunks?of={','.join(f'{number}:{length}' for number, length in frames)}"


def parse_chunks(text: str) -> list[tuple[int, int]]:
    """The frames that a stranger's request asks for.

    Raises:
        Invalid: It is malformed, or asks for too many, or too long ones.
    """
    parts = text.split(",", FRAMES)
    found = []
    for part in parts[:FRAMES]:
        match = _ONE.match(part)
        if match is None or not 0 < int(match[2]) <= FRAME:
            raise Invalid(f"chunks are asked for as NUMBER:LENGTH, not {part[:40]!r}")
        found.append((int(match[1]), int(match[2])))
    if len(parts) > FRAMES or sum(length for _, length in found) > REQUEST + FRAME:
        raise Invalid(f"one request asks for {FRAMES} chunks and {REQUEST} bytes at most")
    return found
