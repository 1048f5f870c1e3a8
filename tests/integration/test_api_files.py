"""Files of a machine over the API: tar streams of any length, over a world in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.api_server import Api, running

from castoff.api.client import ApiClient
from castoff.errors import Invalid, NotFound, Unavailable
from castoff.fakes.launcher import World

BODY_LIMIT = 65536


@pytest.fixture(name="world")
def _world() -> World:
    return World()


@pytest.fixture(name="api")
async def _api(tmp_path: Path, world: World) -> AsyncIterator[Api]:
    """A server that takes little in other bodies, and waits little."""
    async with running(tmp_path, world=world, request_bytes=BODY_LIMIT, client_timeout=1) as found:
        yield found


@pytest.fixture(name="files")
async def _files(api: Api) -> str:
    """The path of the files of a machine that runs."""
    machine = await api.ask("POST", "/v1/apps/mine/machines", {"config": {"image": "alpine"}})
    await api.ask("GET", f"/v1/apps/mine/machines/{machine['id']}/wait?state=started&timeout=10")
    return f"/v1/apps/mine/machines/{machine['id']}/files"


async def pieces(number: int) -> AsyncIterator[bytes]:
    """So many mebibytes."""
    for at in range(number):
        yield bytes([at % 256]) * (1 << 20)


async def test_archives_of_any_length_both_ways(api: Api, files: str, world: World) -> None:
    """No limit of other bodies is theirs."""
    async with ApiClient.open(url=api.url, token="operator") as client:
        await client.send(files, pieces(20), query={"path": "/srv"})
        (taken,) = world.files.values()
        assert taken == b"".join([piece async for piece in pieces(20)])
        assert b"".join([piece async for piece in client.pieces(files, query={"path": "/srv"})]) == taken
        with pytest.raises(NotFound, match="in the machine"):
            await anext(client.pieces(files, query={"path": "/missing"}))


async def test_who_may_and_what_is_a_path(api: Api, files: str) -> None:
    """A token for reading is not shown files; another app's is not let in; a machine that does not run has none."""
    await api.ask("GET", f"{files}?path=/a", token="reader", status=403)
    await api.ask("PUT", f"{files}?path=/a", token="reader", status=403)
    await api.ask("GET", f"{files}?path=/a", token="other", status=403)
    for path in ("", "a", "%2Fa%00b", "/" + "x" * 4096):
        await api.ask("GET", f"{files}?path={path}", status=400)
    await api.ask("PUT", files, status=400)
    stopped = await api.ask("POST", "/v1/apps/mine/machines", {"config": {"image": "alpine"}, "skip_launch": True})
    await api.ask("GET", f"/v1/apps/mine/machines/{stopped['id']}/files?path=/a", status=412)


async def test_an_archive_that_breaks_off_is_not_taken(api: Api, files: str, world: World) -> None:
    """The sender's failure is told as such; a sender that goes on too slowly is let go."""

    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise Invalid("a file became shorter")

    async def stuck() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        await asyncio.sleep(30)

    async with ApiClient.open(url=api.url, token="operator") as client:
        with pytest.raises(Invalid, match="became shorter"):
            await client.send(files, failing(), query={"path": "/srv"})
        with pytest.raises(Unavailable, match="did not go on"):
            await client.send(files, stuck(), query={"path": "/srv"})
    assert not world.files
