"""The list of what refers to a manifest, where the registry keeps none: clients keep it, under a tag.

Source: OCI distribution spec 1.1, spec.md, "Pushing Manifests with Subject" and "Referrers Tag Schema". The list is an
image index; other tools keep their entries in it too, so what is not ours stays as it stands, field by field. Nothing
locks it: whoever writes last wins, so after a write it is read again, and written again where our entry is gone.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

from castoff.errors import Conflict, Invalid
from castoff.image import media
from castoff.image.client import RegistryClient
from castoff.image.digest import Digest
from castoff.image.manifest import decode_index, decode_json
from castoff.image.referrers import MAX_REFERRERS, read_tag_index, referrers_tag

__all__ = ["add_referrer"]

_TRIES = 8
_PAUSE = 0.2
"""Seconds: the ceiling of the first random pause after somebody else's write."""


async def add_referrer(client: RegistryClient, subject: Digest, entry: dict[str, Any], *, limit: int) -> None:
    """Adds ``entry``, a descriptor with its artifactType and annotations, to the list of what refers to ``subject``.

    Raises:
        Conflict: Others write the list faster than we do.
        Invalid: What is there is no list, or is full.
        Unauthorized, Unavailable: The registry refuses, or does not answer.
    """
    for attempt in range(_TRIES):
        data = await read_tag_index(client, subject, limit=limit)
        rows = _rows(subject, data)
        if any(row.get("digest") == entry["digest"] for row in rows):
            return
        if len(rows) >= MAX_REFERRERS:
            raise Invalid(f"{len(rows)} manifests refer to {subject}, which is as many as are looked at")
        if attempt:
            await asyncio.sleep(random.random() * _PAUSE * 2**attempt)
        await _write(client, subject, [*rows, entry], data)
    raise Conflict(f"the list of what refers to {subject} is changed by others all the time", hint="publish again later")


def _rows(subject: Digest, data: bytes | None) -> list[dict[str, Any]]:
    if data is None:
        return []
    what = f"the list of what refers to {subject}"
    decode_index(what, data)  # its shape is checked; what stands in it beyond that is kept as it is
    return list(decode_json(what, data, dict[str, Any])["manifests"])


async def _write(client: RegistryClient, subject: Digest, rows: list[dict[str, Any]], before: bytes | None) -> None:
    index = decode_json("the list", before, dict[str, Any]) if before else {"schemaVersion": 2, "mediaType": media.OCI_INDEX}
    data = json.dumps({**index, "manifests": rows}, separators=(",", ":")).encode()
    what = f"the list of what refers to {subject}"
    headers = {"Content-Type": media.OCI_INDEX}
    path = f"manifests/{referrers_tag(subject)}"
    async with await client.open(what, "PUT", path, headers, client.backoff(), body=data, good=(201,)):
        pass
