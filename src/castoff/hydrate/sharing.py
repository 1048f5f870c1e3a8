"""Boot profiles between hosts: what others recorded comes in, what this host recorded goes out, when it is news.

A host that finds a published profile joins it with its own, so that the boots of all hosts count. It publishes only what
would change other hosts' boots: the first profile, then each time the boots have doubled, then where a tenth of the chunks
are others. So an image gets a handful of them, however often it boots.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castoff import timeline
from castoff.artifact.artifact import Blob
from castoff.artifact.keys import HostKey
from castoff.artifact.manifest import Subject, parse_manifest
from castoff.artifact.profile_referrer import sign_profile
from castoff.artifact.profiles import PublishedProfile, choose_profile, fetch_profile, push_profile, read_profiles, superseded
from castoff.artifact.trust import Trust
from castoff.errors import CastoffError
from castoff.hydrate.hotpack import HotPack, write_hot_pack
from castoff.hydrate.profile import Profile
from castoff.hydrate.profile_file import decode_profile, encode_profile, read_profile, update_profile
from castoff.image import media
from castoff.image.client import RegistryClient
from castoff.image.digest import Digest
from castoff.image.push import RegistryWriter
from castoff.image.referrers import Referrer, ReferrerLists
from castoff.image.verify import check
from castoff.layers.index import LayerIndex
from castoff.store.builds import uninterrupted
from castoff.store.durable import remove
from castoff.store.locks import lock

__all__ = ["Sharing", "adopt_profile", "is_news", "share_profile", "subject_of"]

_CHANGED: Final = 0.1
"""Part of the chunks that must be others for a profile of as many boots to be news."""
_MANIFEST_LIMIT: Final = 4 << 20
_NICE: Final = 10


@dataclass(frozen=True, slots=True)
class Sharing:
    """What publishing a profile takes.

    Attributes:
        root: The store's directory.
        writer: Of the repository where the image's artifact is.
        key: This host's.
        trust: Whose profiles are joined.
        subject: The image's manifest.
        layers: Segment and index of the image's layers.
    """

    root: Path
    writer: RegistryWriter
    key: HostKey
    trust: Trust
    subject: Subject
    layers: Mapping[Digest, tuple[Path, LayerIndex]]


async def adopt_profile(root: Path, client: RegistryClient, published: PublishedProfile) -> Profile:
    """Joins a published profile with this host's own; the result is what this host has from now on.

    Args:
        root: The store's directory.
        client: Of the repository that has it.
        published: What castoff.artifact.profiles found.

    Raises:
        DigestMismatch, Invalid: The registry gives something else.
        CastoffError: It is not to be had, or not to be kept.
    """
    image = published.referrer.image
    data = await fetch_profile(client, published)
    found = await asyncio.to_thread(decode_profile, data, image)
    joined = await update_profile(root, image, lambda own: found if own is None else own.join(found))
    assert joined is not None  # at least what was found
    return joined


def is_news(own: Profile, published: Profile | None) -> bool:
    """Whether ``own``, which holds what is published, would change other hosts' boots."""
    if published is None or len(own.boots) >= 2 * len(published.boots):
        return own.boots != () and own != published
    changed = set(own.chunks) ^ set(published.chunks)
    return len(changed) > _CHANGED * len(published.chunks)


async def share_profile(sharing: Sharing) -> PublishedProfile | None:
    """Publishes this host's profile of an image, joined with the one that is there, where that is news.

    Returns:
        What was published; None where there was nothing to tell.

    Raises:
        CastoffError: The registry did not take it.
    """
    image = sharing.subject.digest
    with timeline.step("hydrate.sharing", image=str(image)):
        # One process of this host at a time: the next one finds what this one published.
        async with lock(sharing.root / "locks" / f"hot-{image.hex}"):
            own, published, rows = await _joined(sharing)
            if own is None or not is_news(own, published):
                return None
            target = sharing.root / "tmp" / f"hot-{image.hex}.{os.urandom(4).hex()}"
            try:
                made = await _publish(sharing, own, target)
            finally:
                await uninterrupted(remove, target)
            if made is not None:
                await _clear(sharing, rows, made)
            return made


async def _joined(sharing: Sharing) -> tuple[Profile | None, Profile | None, Sequence[Referrer]]:
    """This host's profile, joined with what is published; the latter; and the list that it is from."""
    client, image = sharing.writer.client, sharing.subject.digest
    rows = await read_profiles(client, ReferrerLists(image), limit=_MANIFEST_LIMIT)
    found, _ = await asyncio.to_thread(choose_profile, rows, image, sharing.trust, sharing.writer.repository)
    if found is None:
        return await asyncio.to_thread(read_profile, sharing.root, image), None, rows
    published = decode_profile(await fetch_profile(client, found), image)
    own = await update_profile(sharing.root, image, lambda own: published if own is None else own.join(published))
    return own, published, rows


async def _publish(sharing: Sharing, own: Profile, target: Path) -> PublishedProfile | None:
    pack = await uninterrupted(_write_gently, own, sharing.layers, target)
    if pack is None:
        return None  # its chunks are here no longer
    data = await asyncio.to_thread(encode_profile, own)
    referrer = await asyncio.to_thread(
        sign_profile,
        sharing.key,
        image=own.image,
        blob=Blob(Digest.of(data), len(data)),
        hot_pack=Blob(pack.digest, pack.size),
        boots=len(own.boots),
        recorded=own.boots[-1].recorded,
    )
    subject = sharing.subject
    return await push_profile(sharing.writer, referrer, data, target, media_type=subject.media_type, size=subject.size)


async def _clear(sharing: Sharing, rows: Sequence[Referrer], published: PublishedProfile) -> None:
    """Deletes what this host published before, where the registry has deletion. A list that grows with each profile is asked
    for by each create; other signers' are theirs to delete, and nothing is lost where none is deleted."""
    image = sharing.subject.digest
    old = await asyncio.to_thread(superseded, rows, published)
    with timeline.step("hydrate.superseded", profiles=len(old)) as step:
        try:
            for digest in old:
                if not await sharing.writer.delete_referrer(f"the boot profile of {image}", digest, subject=image):
                    break
        except CastoffError as error:
            step.attributes["not"] = error.what


def _write_gently(own: Profile, layers: Mapping[Digest, tuple[Path, LayerIndex]], target: Path) -> HotPack | None:
    """In a thread that leaves the CPU to guests; it is that thread's for good, since only root may take niceness back."""

    def write() -> HotPack | None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # of Linux: of the thread alone
        return write_hot_pack(own, layers, target)

    with ThreadPoolExecutor(1, "hot-pack") as pool:
        return pool.submit(write).result()


async def subject_of(client: RegistryClient, artifact: Digest) -> Subject:
    """The image's manifest, as its artifact's manifest tells of it.

    Args:
        client: Of the repository that has the artifact.
        artifact: Digest of its manifest.

    Raises:
        CastoffError: It is not to be had, or is none.
    """
    what = f"the artifact {artifact}"
    data, _ = await client.read(what, f"manifests/{artifact}", media.OCI_MANIFEST, _MANIFEST_LIMIT)
    return parse_manifest(what, check(what, data, artifact)).subject
