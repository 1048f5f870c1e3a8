"""Clients that mean harm, are broken or are many, over a running server."""

from __future__ import annotations

import asyncio
import gzip
import io
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from tests.api_server import Api, running

from castoff.api.auth import PUBLIC
from castoff.errors import Invalid

MACHINES = "/v1/apps/mine/machines"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A running server."""
    async with running(tmp_path) as found:
        yield found


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[Api]:
    """A server that gives its clients little time."""
    async with running(tmp_path, client_timeout=0.3) as found:
        yield found


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[Api]:
    """A server that lets a client ask four times at once."""
    async with running(tmp_path, requests_per_second=0.001, request_burst=4) as found:
        yield found


@pytest.mark.parametrize(
    ("token", "method", "path", "status"),
    [
        ("unknown", "GET", MACHINES, 401),
        ("operatorx", "GET", MACHINES, 401),
        ("other", "GET", MACHINES, 403),
        ("other", "POST", MACHINES, 403),
        ("mine", "GET", MACHINES, 200),
        ("reader", "GET", MACHINES, 200),
        ("reader", "POST", MACHINES, 403),
        ("reader", "DELETE", "/v1/apps/mine", 403),
        ("reader", "GET", "/v1/apps/mine/secrets?show_secrets=true", 403),
        ("mine", "POST", "/v1/apps", 403),
        ("nobody,other,mine", "GET", MACHINES, 403),
        ("nobody,mine", "GET", MACHINES, 200),
    ],
)
async def test_tokens_let_in_whom_they_should(api: Api, token: str, method: str, path: str, status: int) -> None:
    """Unknown ones are 401; foreign apps, and changes by readers, are 403."""
    await api.ask(method, path, {} if method == "POST" else None, token=token, status=status)


async def test_without_a_token_there_is_nothing(api: Api) -> None:
    """Every route asks for one, also those that do not exist and those that are not served."""
    for method, path in (("GET", MACHINES), ("GET", "/v1/nothing"), ("POST", "/graphql"), ("GET", "/v1/apps/mine/certificates")):
        async with api.session.request(method, f"{api.url}{path}") as answer:
            assert answer.status == 401 and answer.headers["WWW-Authenticate"]
            assert (await answer.json())["error"]


async def test_both_schemes_and_the_socket(api: Api) -> None:
    """FlyV1 as well as Bearer; who can open the unix socket needs neither."""
    for value in ("FlyV1 operator", "Bearer operator", "FlyV1 nobody,operator"):
        async with api.session.get(f"{api.url}{MACHINES}", headers={"Authorization": value}) as answer:
            assert answer.status == 200
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(api.path))) as session,
        session.get(f"http://castoff{MACHINES}") as answer,
    ):
        assert answer.status == 200


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, ""),
        (b"null", ""),
        (b"[]", ""),
        (b"{}", "config"),
        (b'{"config": null}', "config"),
        (b'{"config": {}}', "image"),
        (b'{"config": {"image": 1}}', "image"),
        (b'{"config": {"image": ""}}', ""),
        (b'{"config": {"image": "UPPER CASE!"}}', ""),
        (b'{"config": {"image": "oci:/etc"}}', "disk"),
        (b'{"config": {"image": "docker-archive:/etc/passwd"}}', "disk"),
        (b'{"config": {"image": "a", "env": {"A": 1}}}', "env"),
        (b'{"config": {"image": "a", "guest": {"cpus": -1}}}', "cpus"),
        (b'{"config": {"image": "a", "guest": {"memory_mb": 1e300}}}', "memory_mb"),
        (b'{"config": {"image": "a", "services": [{"internal_port": 65536}]}}', "internal_port"),
        (b'{"config": {"image": "a"}, "name": 7}', "name"),
        (b'{"config": {"image": "a"}, "name": "../../etc"}', "name"),
        (b'{"config": {"image": "a"}, "lease_ttl": -1}', "lease_ttl"),
    ],
)
async def test_bad_bodies_name_their_field(api: Api, body: bytes, word: str) -> None:
    """400, in JSON, with the field; nothing is made."""
    headers = {"Authorization": "Bearer operator"}
    async with api.session.post(f"{api.url}{MACHINES}", data=body, headers=headers) as answer:
        text = await answer.text()
        assert answer.status == 400, text
        assert word in (await answer.json())["error"]
    assert await api.ask("GET", MACHINES) == []


async def test_images_on_disk_are_named_by_the_operator_alone(tmp_path: Path) -> None:
    """Over the network only under a directory that is allowed, links and dots included; over the socket anywhere."""
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    allowed.mkdir()
    other.mkdir()
    (allowed / "link").symlink_to(other)
    async with running(tmp_path, rootfs_directories=(allowed,)) as api:
        for path, status in ((allowed / "image", 200), (other, 400), (allowed / ".." / "other", 400), (allowed / "link", 400)):
            body = {"config": {"image": f"oci:{path}"}, "skip_launch": True}
            answer = await api.ask("POST", MACHINES, body, status=status)
            assert status == 200 or "exist" not in answer["error"]
        body = {"config": {"image": f"oci:{other}"}, "skip_launch": True}
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(api.path))) as session,
            session.post(f"http://castoff{MACHINES}", json=body) as response,
        ):
            assert response.status == 200


async def test_huge_bodies_are_refused(api: Api) -> None:
    """413, whether the length is told or not, without holding them in memory."""

    async def endless() -> bytes:
        for _ in range(64):
            yield b"x" * 1024 * 1024

    url = f"{api.url}{MACHINES}"
    headers = {"Authorization": "Bearer operator"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        async with api.session.post(url, data=endless(), headers=headers) as answer:
            assert answer.status == 413
    except aiohttp.ClientConnectionError:
        pass  # it was let go while it still sent
    async with api.session.post(url, data=io.BytesIO(b"x" * (9 * 1024 * 1024)), headers=headers) as answer:
        assert answer.status == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    await api.ask("GET", MACHINES)


async def test_a_small_body_that_unpacks_into_a_huge_one_is_refused(api: Api) -> None:
    """The limit is for what a body is, not for how it is packed."""
    bomb = gzip.compress(b" " * (64 * 1024 * 1024), 9)
    assert len(bomb) < 100_000
    headers = {"Authorization": "Bearer operator", "Content-Encoding": "gzip"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with api.session.post(f"{api.url}{MACHINES}", data=bomb, headers=headers) as answer:
        assert answer.status in (400, 413)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024


async def test_a_body_that_does_not_come_is_not_waited_for(slow: Api) -> None:
    """Its head is here, the rest never comes: 408."""
    port = int(slow.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST {MACHINES} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer operator\r\nContent-Length: 100\r\n\r\n{{".encode()
    )
    async with asyncio.timeout(20):
        assert b" 408 " in await reader.readline()
    writer.close()


async def test_whoever_asks_too_much_is_told_when_to_come_back(limited: Api) -> None:
    """429 with Retry-After; the socket's owner has no limit."""
    statuses = []
    for _ in range(8):
        async with limited.session.get(f"{limited.url}{MACHINES}", headers={"Authorization": "Bearer operator"}) as answer:
            statuses.append(answer.status)
            if answer.status == 429:
                assert int(answer.headers["Retry-After"]) >= 1
                assert (await answer.json())["error"]
    assert statuses[:4] == [200] * 4 and 429 in statuses
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(limited.path))) as session:
        for _ in range(20):
            async with session.get(f"http://castoff{MACHINES}") as answer:
                assert answer.status == 200


async def test_a_thousand_connections(api: Api) -> None:
    """A thousand idle ones do not keep anybody from being served; all are gone at the end."""
    port = int(api.url.rpartition(":")[2])
    writers = []
    for _ in range(20):
        opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(50)))
        writers += [writer for _, writer in opened]
    await asyncio.gather(*(api.ask("GET", MACHINES) for _ in range(50)))
    for writer in writers:
        writer.close()


async def test_paths_lead_nowhere(api: Api) -> None:
    """Names in a path are looked up, never opened."""
    for path in ("/v1/apps/..%2f..%2fetc/machines", f"{MACHINES}/%00", f"{MACHINES}/..%2f..", "/v1/apps/%ff/machines"):
        await api.ask("GET", path, status=404)


async def test_a_stream_that_fails_breaks_off(tmp_path: Path) -> None:
    """Its head has the request's id; an error in its midst is not written into it, and the client sees that it is not whole."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one\n")
        raise Invalid("in the midst")

    def register(app: web.Application) -> None:
        app.router.add_get("/stream", stream)
        app[PUBLIC].add("/stream")

    async with running(tmp_path, [register]) as api:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with api.session.get(f"{api.url}/stream") as answer:
                assert answer.status == 200 and answer.headers["fly-request-id"]
                await answer.read()
        await api.ask("GET", MACHINES)
