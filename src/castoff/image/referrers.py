"""What refers to an image: the manifests whose ``subject`` it is, read from a registry.

Source: OCI distribution spec 1.1, spec.md, "Listing Referrers" and "Referrers Tag Schema". A registry that has the API
answers ``referrers/<digest>`` with an index, 404 means that it has none; then clients keep that index themselves, under the
tag ``sha256-<hex>``. Whoever may push to a repository may add a referrer to anything in it: nothing here is trusted.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import msgspec

from castoff.errors import CastoffError, Invalid, NotFound, Unavailable
from castoff.image import media
from castoff.image.client import RegistryClient
from castoff.image.connect import Broken
from castoff.image.digest import Digest
from castoff.image.manifest import Descriptor, decode_index, decode_json
from castoff.image.url import Url
from castoff.image.verify import check

__all__ = [
    "Referrer",
    "ReferrerLists",
    "Referrers",
    "annotated",
    "read_referrers",
    "read_tag_index",
    "referrers_of",
    "referrers_tag",
]

_LINK = re.compile(r"<([^>]*)>([^<]*)")
_IS_NEXT = re.compile(r""";\s*rel="?next"?\s*(?:[;,]|\Z)""")

# docker-registry has nothing at all under a tag whose manifest is of a type that is not asked for: an image that somebody
# put there would be taken for no list, and written over.
_ANYTHING = media.ACCEPT
MAX_PAGES: Final = 16
MAX_REFERRERS: Final = 4096
"""Referrers of one image that are looked at, over all pages."""


@dataclass(frozen=True, slots=True)
class Referrer:
    """One manifest that refers to another, as the list describes it."""

    digest: Digest
    size: int
    media_type: str
    artifact_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Referrers:
    """All that refer to one manifest, and who keeps the list."""

    rows: tuple[Referrer, ...]
    kept_by: Literal["registry", "clients"]
    """``clients``: under :func:`referrers_tag`; whoever adds a referrer must add it there."""
    left_out: bool = False
    """Whether there are more than are looked at."""


def referrers_tag(subject: Digest) -> str:
    """The tag of the list that clients keep where the registry keeps none."""
    return f"sha256-{subject.hex}"


async def read_referrers(client: RegistryClient, subject: Digest, *, limit: int) -> Referrers:
    """What refers to ``subject`` in the client's repository; nothing is a result, not an error.

    Args:
        client: The registry, and the repository.
        subject: The manifest that is referred to; it need not be there itself.
        limit: Bytes of one page.

    Raises:
        Unavailable, Unauthorized: The registry does not answer, or refuses.
        Invalid: The list is none, or too large.
    """
    try:
        found = await _ask_registry(client, subject, limit)
    except Broken:
        raise
    except (NotFound, Unavailable):
        found = None  # no such API; some registries of before it say so with 400 or 405
    if found is not None:
        return found
    index = await read_tag_index(client, subject, limit=limit)
    rows = () if index is None else referrers_of(_what(subject), index)
    return Referrers(rows[:MAX_REFERRERS], "clients", left_out=len(rows) > MAX_REFERRERS)


class ReferrerLists:
    """Lists of what refers to one image, each read once, however many look through it.

    Args:
        subject: Of the image's manifest.
    """

    def __init__(self, subject: Digest) -> None:
        self._subject = subject
        self._read: dict[tuple[str, str], asyncio.Future[Referrers]] = {}

    async def read(self, client: RegistryClient, *, limit: int) -> Referrers:
        """As :func:`read_referrers`. Who comes while another reads waits for that; where it fails, or is cancelled, asks anew."""
        place = client.endpoint.host, client.endpoint.repository
        if (others := self._read.get(place)) is not None:
            await asyncio.wait([others])
            if not others.cancelled():
                return others.result()
        own = self._read[place] = asyncio.get_running_loop().create_future()
        try:
            found = await read_referrers(client, self._subject, limit=limit)
        except BaseException:
            own.cancel()
            raise
        own.set_result(found)
        return found


async def annotated(client: RegistryClient, row: Referrer, what: str, *, limit: int) -> Referrer:
    """The row with the annotations of its manifest, where the list does not show them: as of registries from before that was
    asked of them. A manifest that is gone, or broken, leaves the row as it is.

    Args:
        client: The registry, and the repository.
        row: From its list.
        what: Names it in errors.
        limit: Bytes of the manifest.

    Raises:
        Unavailable, Unauthorized: The registry does not answer, or refuses.
    """
    try:
        data, _ = await client.read(what, f"manifests/{row.digest}", media.OCI_MANIFEST, limit)
        document = decode_json(what, check(what, data, row.digest), _Annotated)
    except (Invalid, NotFound):
        return row
    return replace(row, annotations=document.annotations or {})


class _Annotated(msgspec.Struct):
    annotations: dict[str, str] | None = None


async def read_tag_index(client: RegistryClient, subject: Digest, *, limit: int) -> bytes | None:
    """The index that clients keep, as it stands; None: there is none.

    Raises:
        Unavailable, Unauthorized, LimitExceeded: As of :meth:`RegistryClient.read`.
    """
    try:
        data, _ = await client.read(_what(subject), f"manifests/{referrers_tag(subject)}", _ANYTHING, limit)
    except NotFound:
        return None
    return data


def referrers_of(what: str, index: bytes) -> tuple[Referrer, ...]:
    """The rows of such an index; those that castoff could not fetch (another digest than sha256) are passed over.

    Raises:
        Invalid: It is no index.
    """
    rows = (_row(descriptor) for descriptor in decode_index(what, index).manifests)
    return tuple(row for row in rows if row is not None)


async def _ask_registry(client: RegistryClient, subject: Digest, limit: int) -> Referrers | None:
    """The registry's own list; None where what answers is no list, as of a server that answers every path with a page."""
    first = path = f"referrers/{subject}"
    rows: list[Referrer] = []
    for _ in range(MAX_PAGES):
        data, headers = await client.read(_what(subject), path, media.OCI_INDEX, limit)
        if path == first and headers.get_content_type() != media.OCI_INDEX:
            return None
        rows += referrers_of(_what(subject), data)
        following = _next_page(client, ", ".join(headers.get_all("Link", [])), first)
        if following is None or len(rows) > MAX_REFERRERS:
            return Referrers(tuple(rows[:MAX_REFERRERS]), "registry", left_out=len(rows) > MAX_REFERRERS)
        path = following
    return Referrers(tuple(rows), "registry", left_out=True)


def _next_page(client: RegistryClient, links: str, first: str) -> str | None:
    """The path of the next page within the repository (RFC 8288, as the spec's "Link" header); None: this is the last.

    Raises:
        Invalid: It lies elsewhere than the list.
    """
    target = next((match[1] for match in _LINK.finditer(links) if _IS_NEXT.search(match[2])), None)
    if target is None:
        return None
    own = f"/v2/{client.endpoint.repository}/"
    base = Url(client.endpoint.origin("https"), own + first)  # the scheme falls away: only the target is used
    path = Url.parse(target, base=base).target
    if not path.startswith(f"{own}{first}?"):
        raise Invalid(f"{client.endpoint.host} continues its list of referrers at {path[:100]!r}", hint="which is no part of it")
    return path.removeprefix(own)


def _row(descriptor: Descriptor) -> Referrer | None:
    try:
        digest = Digest.parse(descriptor.digest)
    except CastoffError:
        return None
    return Referrer(digest, descriptor.size, descriptor.media_type, descriptor.artifact_type or "", descriptor.annotations or {})


def _what(subject: Digest) -> str:
    return f"the list of what refers to {subject}"
