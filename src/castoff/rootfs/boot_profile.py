"""The boot profile that others published: found beside the artifact, at work before anything else of a lazy create is.

    a profile that a trusted key signed? -> the hydrator begins to stream its hot pack at once (castoff.hydrate.boot_profiles)
                                            -> the profile itself joins this host's own, in the store

None of it is needed for a create: what goes wrong is told in a line.
"""

from __future__ import annotations

import asyncio

from castoff.artifact.profiles import PublishedProfile, find_profile
from castoff.artifact.repository import open_repository
from castoff.artifact.trust import load_trust
from castoff.errors import CastoffError
from castoff.hydrate.client import expect
from castoff.hydrate.record import HotPackRecord
from castoff.hydrate.sharing import adopt_profile
from castoff.image.image import Image
from castoff.image.reference import parse_reference
from castoff.image.referrers import ReferrerLists
from castoff.rootfs.context import ProviderContext
from castoff.timeline import step

__all__ = ["adopted_profile", "published_profile"]


async def adopted_profile(
    image: Image, context: ProviderContext, *, stream: bool = True, lists: ReferrerLists | None = None
) -> HotPackRecord | None:
    """Finds the profile of an image, and makes it this host's own; its hot pack, or None where there is none to be had.

    Args:
        image: The image.
        context: The store, the settings, how to reach registries.
        stream: Have the hydrator begin with the hot pack: a rootfs of the image will be attached within seconds.
        lists: What refers to the image, for who looks for more than its profile.
    """
    with step("rootfs.boot_profile", image=str(image.digest)) as current:
        try:
            async with asyncio.timeout(context.artifact.find_timeout):
                published = await published_profile(image, context, lists)
                if published is None:
                    return None
                referrer = published.referrer
                current.attributes |= {"boots": referrer.boots, "hot_pack": referrer.hot_pack.size}
                hot_pack = HotPackRecord(
                    repository=published.repository, digest=str(referrer.hot_pack.digest), size=referrer.hot_pack.size
                )
                if stream:
                    await expect(context.store.state, image.digest, hot_pack, context.image)
                async with open_repository(published.repository, context.image) as client:
                    await adopt_profile(context.store.root, client, published)
                return hot_pack
        except TimeoutError:
            context.notice(f"the boot profile of {image.reference} did not come within {context.artifact.find_timeout:g} s")
        except CastoffError as error:
            context.notice(f"the boot profile of {image.reference} cannot be used: {error}")
        return None


async def published_profile(
    image: Image, context: ProviderContext, lists: ReferrerLists | None = None
) -> PublishedProfile | None:
    """The best profile of an image that counts on this host; what does not is told as notices.

    Raises:
        Invalid: A repository of the settings is none.
    """
    trust = await asyncio.to_thread(load_trust, context.store.state)
    settings = context.artifact
    published, notes = await find_profile(
        image.digest,
        parse_reference(image.reference),
        context.image,
        trust,
        repositories=settings.repositories,
        timeout=settings.find_timeout,
        lists=lists,
    )
    for note in notes:
        context.notice(note)
    return published
