"""Lists of referrers, as registries and clients keep them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from castoff.errors import CastoffError, Invalid, LimitExceeded, Unauthorized, Unavailable
from castoff.image.client import RegistryClient
from castoff.image.credentials import Keyring
from castoff.image.digest import Digest
from castoff.image.endpoint import endpoints_of
from castoff.image.media import OCI_INDEX
from castoff.image.reference import RegistryReference
from castoff.image.referrers import MAX_PAGES, MAX_REFERRERS, ReferrerLists, read_referrers, referrers_of, referrers_tag
from castoff.image.settings import ImageSettings
from castoff.image.transport import Transport
from hostile_registry import Fault, HostileRegistry, answer, only
from oci_builder import Blob

SUBJECT = Digest.of(b"the image")
API = f"/v2/x/app/referrers/{SUBJECT}"
TAG = f"/v2/x/app/manifests/{referrers_tag(SUBJECT)}"
LIMIT = 1 << 20
QUICK = ImageSettings(retries=1, retry_delay=0.01, read_timeout=2.0)


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"mediaType": "a/b", "digest": str(Digest.of(str(number).encode())), "size": number, "artifactType": "c/d", **more}


def index(*numbers: int) -> Blob:
    return Blob(json.dumps({"schemaVersion": 2, "manifests": [row(number) for number in numbers]}).encode(), OCI_INDEX)


@asynccontextmanager
async def client_of(registry: HostileRegistry) -> AsyncIterator[RegistryClient]:
    transport = Transport(QUICK)
    async with registry.running() as host:
        endpoint = endpoints_of(RegistryReference(host, "x/app"), QUICK)[-1]
        try:
            yield RegistryClient(endpoint, Keyring(QUICK), transport, QUICK)
        finally:
            await transport.close()


def paged(*pages: list[int], links: list[str]) -> Fault:
    """The API, page after page; ``links`` are the Link headers."""

    async def fault(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        if request.path != API:
            return None
        number = int(request.query.get("page", "0"))
        headers = {"Link": links[number]} if links[number] else {}
        return web.Response(body=index(*pages[number]).data, content_type=OCI_INDEX, headers=headers)

    return fault


async def sizes(registry: HostileRegistry) -> list[int]:
    async with client_of(registry) as client:
        return [found.size for found in (await read_referrers(client, SUBJECT, limit=LIMIT)).rows]


async def test_the_registrys_own_list_comes_first() -> None:
    """The tag is not asked for."""
    registry = HostileRegistry()
    registry.put(API, index(1, 2))
    registry.put(TAG, index(3))
    async with client_of(registry) as client:
        found = await read_referrers(client, SUBJECT, limit=LIMIT)
    assert (found.kept_by, [one.size for one in found.rows], found.left_out) == ("registry", [1, 2], False)
    assert found.rows[0].artifact_type == "c/d" and found.rows[0].digest == Digest.of(b"1")
    assert registry.paths() == [API]


@pytest.mark.parametrize("status", [400, 404, 405, 501])
async def test_a_registry_without_the_api_has_a_list_under_a_tag(status: int) -> None:
    """However it says that it has no such API."""
    registry = HostileRegistry()
    registry.put(TAG, index(3))
    registry.faults.append(only("/referrers/", answer(status)))
    async with client_of(registry) as client:
        found = await read_referrers(client, SUBJECT, limit=LIMIT)
    assert (found.kept_by, [one.size for one in found.rows]) == ("clients", [3])


async def test_who_looks_for_more_than_one_thing_reads_the_list_once() -> None:
    """At once or one after another; whose companion was cancelled, or failed, asks anew."""
    registry = HostileRegistry()
    registry.put(API, index(1, 2))
    async with client_of(registry) as client:
        lists = ReferrerLists(SUBJECT)
        cancelled = asyncio.create_task(lists.read(client, limit=LIMIT))
        await asyncio.sleep(0)
        companion = asyncio.create_task(lists.read(client, limit=LIMIT))
        await asyncio.sleep(0)
        cancelled.cancel()
        found = [await companion, await lists.read(client, limit=LIMIT)]
        assert [[row.size for row in one.rows] for one in found] == [[1, 2]] * 2
        again = ReferrerLists(SUBJECT)
        before = len(registry.paths())
        await asyncio.gather(*(again.read(client, limit=LIMIT) for _ in range(5)))
        assert len(registry.paths()) == before + 1
        failing = ReferrerLists(SUBJECT)
        with pytest.raises(LimitExceeded):
            await failing.read(client, limit=10)
        assert len((await failing.read(client, limit=LIMIT)).rows) == 2


async def test_a_page_for_people_is_no_list() -> None:
    """Some servers answer every path with their front page."""
    registry = HostileRegistry()
    registry.put(TAG, index(3))
    registry.put(API, Blob(b"<html>welcome</html>", "text/html"))
    assert await sizes(registry) == [3]


async def test_nothing_refers_to_it() -> None:
    """No list is no error."""
    async with client_of(HostileRegistry()) as client:
        found = await read_referrers(client, SUBJECT, limit=LIMIT)
    assert (found.rows, found.kept_by) == ((), "clients")


@pytest.mark.parametrize(
    "link",
    [
        f'<{API}?page=1>; rel="next"',
        f"<{API}?page=1>;rel=next",
        '<?page=1>; title="x"; rel="next"',
        f'<{API}?page=7>; rel="prev", <{API}?page=1>; rel="next"; title="x"',
        f'<http://elsewhere.example{API}?page=1>; rel="next"',  # asked for at the registry itself all the same
    ],
)
async def test_pages_are_put_together(link: str) -> None:
    """As RFC 8288 has it, relative or absolute."""
    registry = HostileRegistry()
    registry.faults.append(paged([1, 2], [3], links=[link, ""]))
    assert await sizes(registry) == [1, 2, 3]
    assert {seen.path for seen in registry.requests} == {API}


@pytest.mark.parametrize("link", ["", "nonsense", f'<{API}?page=1>; rel="prev"', f"<{API}?page=1>", f'{API}?page=1; rel="next"'])
async def test_what_is_no_next_page_is_the_end(link: str) -> None:
    """Of a list that is whole without it."""
    registry = HostileRegistry()
    registry.faults.append(paged([1], [2], links=[link, ""]))
    assert await sizes(registry) == [1]


@pytest.mark.parametrize(
    "target", ["/v2/x/other/referrers/a?page=1", "/v2/x/app/blobs/x", "/", "../../../etc?page=1", f"{API}x?page=1"]
)
async def test_a_list_that_goes_on_elsewhere_is_refused(target: str) -> None:
    """With our credentials nothing else is asked for."""
    registry = HostileRegistry()
    registry.faults.append(paged([1], links=[f'<{target}>; rel="next"']))
    with pytest.raises(Invalid, match="no part of it"):
        await sizes(registry)
    assert registry.paths() == [API]


async def test_a_list_without_end_ends() -> None:
    """After so many pages, and so many rows; that something was left out is told."""
    endless, large = HostileRegistry(), HostileRegistry()
    endless.faults.append(paged([1], links=[f'<{API}?page=0>; rel="next"']))
    links = [f'<{API}?page={number}>; rel="next"' for number in (1, 2)]
    large.faults.append(paged([*range(MAX_REFERRERS - 1)], [1, 2], [3], links=[*links, ""]))
    for registry, rows, requests in ((endless, MAX_PAGES, MAX_PAGES), (large, MAX_REFERRERS, 2)):
        async with client_of(registry) as client:
            found = await read_referrers(client, SUBJECT, limit=LIMIT)
        assert found.left_out and len(found.rows) == rows and len(registry.requests) == requests


async def test_a_list_that_is_too_large_or_broken_is_an_error() -> None:
    """Not a list of nothing."""
    for blob, kind in ((index(*range(100)), LimitExceeded), (Blob(b'{"manifests": 7}', OCI_INDEX), Invalid)):
        registry = HostileRegistry()
        registry.put(API, blob)
        async with client_of(registry) as client:
            with pytest.raises(kind):
                await read_referrers(client, SUBJECT, limit=1000)


@pytest.mark.parametrize(("status", "kind"), [(403, Unauthorized), (503, Unavailable)])
async def test_a_registry_that_refuses_or_is_down_is_an_error(status: int, kind: type[CastoffError]) -> None:
    """Not a list of nothing."""
    registry = HostileRegistry()
    registry.faults.append(only("/", answer(status)))
    with pytest.raises(kind):
        await sizes(registry)


def test_rows_of_another_digest_than_sha256_are_passed_over() -> None:
    """They are other tools' and stay out of our way."""
    data = json.dumps({"manifests": [row(1), row(2, digest="sha512:" + "0" * 128), row(3, artifactType=None, annotations=None)]})
    assert [(found.size, found.artifact_type, found.annotations) for found in referrers_of("it", data.encode())] == [
        (1, "c/d", {}),
        (3, "", {}),
    ]
