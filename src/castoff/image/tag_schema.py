"""The list of what refers to a manifest, where the registry keeps none: clients keep it, under a tag.

Source: OCI distribution spec 1.1, spec.md, "Pushing Manifests with Subject" and "Referrers Tag Schema". The list is an
image index; other tools keep their entries in it too, so what is not ours stays as it stands, field by field. Nothing
locks it: whoever read it before we wrote, and writes after us, takes our entry away. So it is read again once every such
writer must be through, and written again where our entry is gone.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

from castoff.errors import Conflict, Invalid, NotFound
from castoff.image import media
from castoff.image.client import RegistryClient
from castoff.image.digest import Digest
from castoff.image.manifest import decode_index, decode_json
from castoff.image.referrers import MAX_REFERRERS, read_tag_index, referrers_tag

__all__ = ["add_referrer", "drop_referrer"]

_TRIES = 12
_PAUSE = 0.1
"""Seconds: the ceiling of the first random pause after somebody else's write; doubles with each."""
_SETTLED = 4
"""Times that our own reading and writing took, after which others who read before we wrote have written."""
_SHORTEST, _LONGEST = 0.05, 3.0
"""Seconds that are waited for it at least, at most."""

_Rows = list[dict[str, Any]]


async def add_referrer(client: RegistryClient, subject: Digest, entry: dict[str, Any], *, limit: int) -> None:
    """Adds ``entry``, a descriptor with its artifactType and annotations, to the list of what refers to ``subject``.

    Raises:
        Conflict: Others write the list faster than we do.
        Invalid: What is there is no list, or is full.
        Unauthorized, Unavailable: The registry refuses, or does not answer.
    """
    for attempt in range(_TRIES):
        began = time.monotonic()
        data = await read_tag_index(client, subject, limit=limit)
        rows = _rows(subject, data)
        if any(row.get("digest") == entry["digest"] for row in rows):
            return
        if len(rows) >= MAX_REFERRERS:
            raise Invalid(f"{len(rows)} manifests refer to {subject}, which is as many as are looked at")
        await _write(client, subject, rows, entry, data)
        await asyncio.sleep(min(max(_SETTLED * (time.monotonic() - began), _SHORTEST), _LONGEST))
        if any(
            row.get("digest") == entry["digest"] for row in _rows(subject, await read_tag_index(client, subject, limit=limit))
        ):
            return
        await asyncio.sleep(random.random() * _PAUSE * 2 ** min(attempt, 5))
    raise Conflict(f"the list of what refers to {subject} is changed by others all the time", hint="publish again later")


async def drop_referrer(client: RegistryClient, subject: Digest, digest: Digest, *, limit: int) -> None:
    """Takes a manifest that was deleted out of the list, once: where others write at that moment, its entry leads nowhere.

    Raises:
        Invalid: What is there is no list.
        Unauthorized, Unavailable: The registry refuses, or does not answer.
    """
    data = await read_tag_index(client, subject, limit=limit)
    rows = _rows(subject, data)
    left = [row for row in rows if row.get("digest") != str(digest)]
    if data is not None and len(left) < len(rows):
        await _put(client, subject, {**decode_json("the list", data, dict[str, Any]), "manifests": left})


def _rows(subject: Digest, data: bytes | None) -> _Rows:
    if data is None:
        return []
    what = f"the list of what refers to {subject}"
    decode_index(what, data)  # its shape is checked; what stands in it beyond that is kept as it is
    return list(decode_json(what, data, dict[str, Any])["manifests"])


async def _write(client: RegistryClient, subject: Digest, rows: _Rows, entry: dict[str, Any], before: bytes | None) -> None:
    """Writes the list; a registry that refuses it, since manifests of others in it are gone, gets it without those."""
    index = decode_json("the list", before, dict[str, Any]) if before else {"schemaVersion": 2, "mediaType": media.OCI_INDEX}
    try:
        await _put(client, subject, {**index, "manifests": [*rows, entry]})
    except (Invalid, NotFound):
        left = [
            row for row, there in zip(rows, await asyncio.gather(*(_is_there(client, row) for row in rows)), strict=True) if there
        ]
        if len(left) == len(rows):
            raise
        await _put(client, subject, {**index, "manifests": [*left, entry]})


async def _put(client: RegistryClient, subject: Digest, index: dict[str, Any]) -> None:
    data = json.dumps(index, separators=(",", ":")).encode()
    what, path = f"the list of what refers to {subject}", f"manifests/{referrers_tag(subject)}"
    headers = {"Content-Type": media.OCI_INDEX}
    async with await client.open(what, "PUT", path, headers, client.backoff(), body=data, good=(201,)):
        pass


async def _is_there(client: RegistryClient, row: dict[str, Any]) -> bool:
    digest = str(row["digest"])
    headers = {"Accept": media.ACCEPT}
    try:
        async with await client.open(digest[:80], "HEAD", f"manifests/{Digest.parse(digest)}", headers, client.backoff()):
            return True
    except NotFound:
        return False
    except Invalid:
        return True  # of another algorithm than sha256: not ours to judge
