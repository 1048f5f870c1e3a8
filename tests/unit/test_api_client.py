"""The client against the real server, and against servers that are none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.api_server import Api, running

from castoff.api.client import ApiClient, refusal
from castoff.api.errors import error_answer
from castoff.errors import (
    CastoffError,
    Conflict,
    Internal,
    Invalid,
    LimitExceeded,
    NoSpace,
    NotFound,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from castoff.lifecycle.model import PreconditionFailed, WaitTimeout

KINDS = (Invalid, NotFound, Conflict, Unauthorized, Unavailable, Unsupported, Internal, PreconditionFailed)


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Api]:
    """A running server."""
    async with running(tmp_path) as found:
        yield found


@contextlib.asynccontextmanager
async def answering(answer: bytes, *, ends: bool = True) -> AsyncIterator[str]:
    """The URL of a server that says the same to everybody."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if ends:
            writer.close()
        else:
            await reader.read()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_server_raises_is_what_its_client_raises(kind: type[CastoffError]) -> None:
    """Class, text and hint go through HTTP as they are: one table, both ways."""
    answer = error_answer(kind("it is so", hint="do this"))
    assert isinstance(answer.body, bytes)
    error = refusal(answer.status, answer.body)
    assert (type(error), error.what, error.hint) == (kind, "it is so", "do this")


def test_failures_with_figures_come_through_as_their_kind() -> None:
    """A full disk is one at both ends, a limit is an Invalid."""
    full = error_answer(NoSpace("/disk", needed=2_000_000, available=1))
    assert isinstance(full.body, bytes)
    error = refusal(full.status, full.body)
    assert isinstance(error, NoSpace) and "2.0 MB" in str(error)
    large = error_answer(LimitExceeded("the body", limit=5, setting="agent.request_bytes"))
    assert isinstance(large.body, bytes)
    assert large.status == 413 and type(refusal(413, large.body)) is Invalid


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unauthorized),
        (404, NotFound),
        (408, WaitTimeout),
        (422, Invalid),
        (502, Unavailable),
        (418, Internal),
        (302, Internal),
    ],
)
def test_other_servers_errors_are_told_by_status(status: int, kind: type[CastoffError]) -> None:
    """Proxies answer HTML, others no code: the status is enough, and what they said is shown, on one line."""
    error = refusal(status, b"<h1>no\x1b[2J</h1>\n")
    assert type(error) is kind and "<h1>no" in error.what and error.what.isprintable()
    assert type(refusal(status, b"[1]")) is kind


async def test_by_socket_and_by_url(api: Api) -> None:
    """The operator's socket needs no token, a URL does."""
    async with ApiClient.open(socket=api.path) as client:
        assert (await client.ask("GET", "/v1/apps"))["total_apps"] == 2
        made = await client.ask("POST", "/v1/apps/mine/machines", body={"config": {"image": "alpine"}})
        path = f"/v1/apps/mine/machines/{made['id']}"
        assert (await client.ask("GET", f"{path}/wait", query={"state": "started"}))["state"] == "started"
        with pytest.raises(WaitTimeout):
            await client.ask("GET", f"{path}/wait", query={"state": "stopped", "timeout": "1"})
        with pytest.raises(PreconditionFailed):
            await client.ask("POST", path, body={"config": {"image": "alpine"}, "current_version": "01HZ"})
        with pytest.raises(NotFound):
            await client.ask("GET", "/v1/apps/mine/machines/none")
    async with ApiClient.open(url=api.url, token=api.token) as client:
        assert (await client.ask("GET", f"{path}"))["id"] == made["id"]
    async with ApiClient.open(url=f"{api.url}/", token="nonsense") as client:
        with pytest.raises(Unauthorized):
            await client.ask("GET", "/v1/apps")


async def test_nobody_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    """No socket, a port at which nobody listens."""
    async with ApiClient.open(socket=tmp_path / "agent.sock") as client:
        with pytest.raises(Unavailable, match="castoff agent"):
            await client.ask("GET", "/v1/apps")
    async with ApiClient.open(url="http://127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match="CASTOFF_URL"):
            await client.ask("GET", "/v1/apps")


@pytest.mark.parametrize("url", ["localhost:4280", "ftp://host", "http://", "http://host/prefix", "http://host?x=1"])
async def test_what_is_no_url_is_refused(url: str) -> None:
    """A prefix would be lost: the API's paths are absolute."""
    with pytest.raises(Invalid, match="4280"):
        async with ApiClient.open(url=url):
            raise AssertionError("it was taken")


async def test_servers_that_are_none() -> None:
    """No HTTP, no JSON, an answer that breaks off, a redirect to elsewhere, an endless body: each a failure with a text."""
    for answer, kind in (
        (b"SSH-2.0-OpenSSH\r\n\r\n", Unavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html", Invalid),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", Unavailable),
        (b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n", Internal),
        (b"", Unavailable),
    ):
        async with answering(answer) as url, ApiClient.open(url=url, token="t") as client:
            with pytest.raises(CastoffError) as raised:
                await client.ask("GET", "/v1/apps")
            assert type(raised.value) is kind, answer
    async with (
        answering(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(65 << 20)) as url,
        ApiClient.open(url=url) as client,
    ):
        with pytest.raises(Invalid, match="64 MiB"):
            await client.ask("GET", "/v1/apps")


async def test_a_server_that_says_nothing_is_given_up(api: Api) -> None:
    """After as long as the caller has patience."""
    async with answering(b"", ends=False) as url, ApiClient.open(url=url) as client:
        with pytest.raises(Unavailable, match="broke off"):
            await client.ask("GET", "/v1/apps", patience=0.05)


async def test_lines_come_one_by_one_and_none_is_endless() -> None:
    """What is no JSON, and a line of some megabytes, are failures; what came before them was given."""
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    for rest in (b"no json\n", b'"' + bytes(5 << 20)):
        async with answering(head + b'{"m":1}\n' + rest) as url, ApiClient.open(url=url) as client:
            found = []
            with pytest.raises(Invalid):
                async for line in client.lines("/v1/logs", query={}):
                    found += [line]
            assert found == [{"m": 1}]
    async with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as url, ApiClient.open(url=url) as client:
        with pytest.raises(NotFound):
            async for _ in client.lines("/v1/logs", query={}):
                raise AssertionError("there was a line")
