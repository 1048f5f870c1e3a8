"""The page's data: who may see what, live streams, and the metrics that clients cannot blow up."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.lifecycle import settled, wanted
from tests.pages import MINE, OPERATOR, Served, lazy_rootfs, served

from castoff.api.stream import MachineStream
from castoff.errors import Unavailable
from castoff.lifecycle.machines import Change, Machine
from castoff.lifecycle.states import State


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Served]:
    """A page over no machines."""
    async with served(tmp_path, hosts=("castoff.example",)) as found:
        yield found


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as found:
        yield found


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str, Any]]:
    """Kind, id and data of each event of a stream."""
    rest = b""
    async for data in response.content.iter_any():
        *blocks, rest = (rest + data).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if fields:
                yield fields["event"], fields["id"], json.loads(fields["data"])


async def get(session: aiohttp.ClientSession, url: str, headers: dict[str, str] = OPERATOR) -> tuple[int, Any]:
    """Status and JSON of one look."""
    async with session.get(url, headers=headers) as response:
        return response.status, await response.json()


async def test_the_page_needs_no_token_and_its_data_do(page: Served, session: aiohttp.ClientSession) -> None:
    """Its files are for all, with a policy that lets nothing foreign in; everything else wants a token in the header."""
    async with session.get(page.url) as response:
        assert response.status == 200
        text = await response.text()
        policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "://" not in text  # nothing of another origin
    for path in ("/page/app.js", "/page/style.css", "/page/icon.svg"):
        async with session.get(f"{page.url}{path}") as response:
            assert response.status == 200
            tag = response.headers["ETag"]
        async with session.get(f"{page.url}{path}", headers={"If-None-Match": tag}) as response:
            assert response.status == 304
    for path in ("/page/stream", "/page/store", "/page/creates", "/metrics", "/page/machines/0123456789abcd"):
        async with session.get(f"{page.url}{path}") as response:
            assert response.status == 401
        async with session.get(f"{page.url}{path}", cookies={"castoff.token": "operator"}) as response:
            assert response.status == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("localhost", 200),
        ("127.0.0.1:4280", 200),
        ("[::1]:4280", 200),
        ("castoff.example:4280", 200),
    ],
)
async def test_a_foreign_name_is_refused(page: Served, session: aiohttp.ClientSession, host: str, status: int) -> None:
    """A name that was pointed at this host (DNS rebinding) gets neither the page nor its data."""
    for path in ("/", "/page/store", "/metrics"):
        async with session.get(f"{page.url}{path}", headers={"Host": host, **OPERATOR}) as response:
            assert response.status == status


async def test_a_token_of_one_app_sees_that_app(page: Served, session: aiohttp.ClientSession) -> None:
    """Machines of others are not there for it, in no list, stream or look; store and metrics are the operator's."""
    mine = await page.machines.create("mine", wanted(env={"PASSWORD": "hidden"}))
    other = await page.machines.create("other", wanted())
    for machine in (mine, other):
        await settled(page.machines, machine, State.STARTED)
    status, found = await get(session, f"{page.url}/page/machines/{mine.id}", MINE)
    assert status == 200
    assert [event["type"] for event in found["events"]] == ["start", "start", "launch"]
    assert "hidden" not in json.dumps(found)
    for path in ("", "/create", "/rootfs"):
        assert (await get(session, f"{page.url}/page/machines/{other.id}{path}", MINE))[0] == 404
        assert (await get(session, f"{page.url}/page/machines/{other.id}{path}"))[0] == 200
    assert [row["machine"] for row in (await get(session, f"{page.url}/page/creates", MINE))[1]] == [mine.id]
    assert (await get(session, f"{page.url}/page/store", MINE))[0] == 403
    async with session.get(f"{page.url}/metrics", headers=MINE) as response:
        assert response.status == 403
    async with session.get(f"{page.url}/page/stream", headers=MINE) as response:
        stream = events(response)
        kind, _, rows = await anext(stream)
        assert (kind, [row["id"] for row in rows]) == ("machines", [mine.id])
        await page.machines.stop(None, other.id)
        await page.machines.stop(None, mine.id)
        seen = set()
        while State.STOPPED not in seen:
            _, _, rows = await anext(stream)
            assert {row["id"] for row in rows} <= {mine.id}
            seen |= {row["state"] for row in rows}


async def test_a_browser_that_comes_back_gets_what_it_missed(page: Served, session: aiohttp.ClientSession) -> None:
    """With the last id it gets the changes since; with one of an earlier agent, or nonsense, everything anew."""
    machine = await page.machines.create("mine", wanted())
    await settled(page.machines, machine, State.STARTED)
    async with session.get(f"{page.url}/page/stream", headers=OPERATOR) as response:
        stream = events(response)
        last = ""
        state = ""
        while state != State.STARTED:
            _, last, rows = await anext(stream)
            state = rows[-1]["state"] if rows else state
    await page.machines.stop(None, machine.id)
    await settled(page.machines, machine, State.STOPPED)
    async with session.get(f"{page.url}/page/stream", headers={**OPERATOR, "Last-Event-ID": last}) as response:
        stream = events(response)
        assert (await anext(stream))[0] == "again"
        while state != State.STOPPED:
            kind, _, rows = await anext(stream)
            assert kind == "changes"
            state = rows[-1]["state"]
    for foreign in ("00000000-1", f"{last}9999", last.replace("-", "--"), "nonsense", "9" * 4000):
        async with session.get(f"{page.url}/page/stream", headers={**OPERATOR, "Last-Event-ID": foreign}) as response:
            kind, _, rows = await anext(events(response))
            assert (kind, len(rows)) == ("machines", 1)


async def test_a_browser_that_does_not_read_is_dropped(page: Served, session: aiohttp.ClientSession) -> None:
    """Its queue is bounded: it is cut off, while another one that reads gets every state."""
    address = page.url.removeprefix("http://")
    host, _, port = address.partition(":")
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((host, int(port)))
        deaf.sendall(f"GET /page/stream HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer operator\r\n\r\n".encode())
        async with asyncio.timeout(60):
            for number in range(400):
                await page.machines.create("mine", wanted(skip_launch=True, env=None, image="x" * 3000 + str(number)))
            while len(page.stream) == 0:
                await asyncio.sleep(0.01)
            machines = page.machines.list()
            reading = asyncio.create_task(_count(session, page.url, len(machines)))
            number = 0
            while page.stream.dropped == 0:
                await asyncio.gather(*(page.machines.set_metadata(None, one.id, {"n": str(number)}) for one in machines))
                number += 1
            assert await reading == len(machines)
    async with asyncio.timeout(60):
        while len(page.stream):
            await asyncio.sleep(0.01)
    assert page.stream.dropped == 1


async def _count(session: aiohttp.ClientSession, url: str, wanted: int) -> int:
    async with session.get(f"{url}/page/stream", headers=OPERATOR) as response:
        seen: set[str] = set()
        async for _, _, rows in events(response):
            seen |= {row["id"] for row in rows}
            if len(seen) >= wanted:
                break
        return len(seen)


class Lossy:
    """A fleet whose changes are lost once."""

    def __init__(self, machines: list[Machine]) -> None:
        self.machines = machines
        self.lose = asyncio.Event()

    def list(self, app: str | None = None) -> list[Machine]:
        """All."""
        return self.machines

    def get(self, app: str | None, machine: str) -> Machine:
        """One."""
        return self.machines[0]

    async def subscribe(self) -> AsyncIterator[Change]:
        """None, until they are lost."""
        await self.lose.wait()
        self.lose.clear()
        return
        yield


async def test_lost_changes_are_made_good(page: Served) -> None:
    """Where the stream itself did not keep up, every browser gets everything anew."""
    await page.machines.create("mine", wanted(skip_launch=True))
    fleet = Lossy([])
    async with MachineStream.open(fleet) as stream:
        with stream.subscribe(None, "", lambda: None) as browser:
            first = await browser.next()
            fleet.machines = list(page.machines.list())
            fleet.lose.set()
            second = await browser.next()
    assert first is not None and second is not None
    assert b"event: machines\ndata: []\n" in first
    assert fleet.machines[0].id.encode() in second


async def test_too_many_browsers_are_refused(page: Served) -> None:
    """Beyond a number the stream is unavailable, and free again when one goes."""
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(page.stream.subscribe(None, "", lambda: None))
        with pytest.raises(Unavailable), page.stream.subscribe(None, "", lambda: None):
            pass
    with page.stream.subscribe(None, "", lambda: None):
        pass


async def test_a_map_of_what_is_here(page: Served, session: aiohttp.ClientSession) -> None:
    """A lazy machine's chunks, layer by layer, with those of the boot profile; whole where nothing is lazy any more."""
    machine = await page.machines.create("mine", wanted())
    url = f"{page.url}/page/machines/{machine.id}/rootfs"
    assert (await get(session, url))[1] == {"lazy": False, "complete": True}
    lazy_rootfs(page.store, machine.id, layers=(3, 200, 5), present=100, filling=2)
    status, found = await get(session, url)
    assert status == 200
    assert [(first, count) for _, first, count in found["layers"]] == [(0, 3), (3, 200), (203, 5)]
    cells = base64.b64decode(found["chunks"])
    assert [cell & 3 for cell in cells] == [2] * 100 + [1] * 2 + [0] * 106
    assert [number for number, cell in enumerate(cells) if cell & 4] == [3 + number for number in range(60, 200, 2)]
    (page.store / "machines" / machine.id / "lazy.state").unlink()
    assert (await get(session, url))[1]["complete"] is True


async def test_metrics_have_no_label_of_a_clients_making(page: Served, session: aiohttp.ClientSession) -> None:
    """Creates, failures, unknown routes and methods add to series; machines, apps, images, paths make none."""

    async def scrape() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        async with session.get(f"{page.url}/metrics", headers=OPERATOR) as response:
            assert response.status == 200
            assert response.content_type == "text/plain"
            families = text_string_to_metric_families(await response.text())
            return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}

    async def round(number: int) -> None:
        body = {"config": {"image": f"image-{number}"}, "name": f"name-{number}"}
        async with session.post(f"{page.url}/v1/apps/mine/machines", headers=OPERATOR, json=body) as response:
            assert response.status == 200
            machine = await response.json()
        await page.machines.wait(None, machine["id"], states=[State.STARTED])
        for method, path in (
            ("GET", f"/nowhere/{number}"),
            (("PROPFIND", "LOCK", "MKCOL", "SEARCH", "PURGE", "LINK")[number], "/"),
            ("GET", f"/page/machines/{number:014x}"),
        ):
            async with session.request(method, f"{page.url}{path}", headers=OPERATOR) as response:
                assert response.status in (404, 405)

    await round(0)
    await scrape()  # the scrape's own series
    before = await scrape()
    for number in range(1, 6):
        await round(number)
    after = await scrape()
    assert before.keys() == after.keys()
    text = repr(sorted(after))
    for made in ("image-", "name-", "nowhere", "MKCOL", *(machine.id for machine in page.machines.list())):
        assert made not in text
    started = ("castoff_machines", (("state", "started"),))
    assert (before[started], after[started]) == (1, 6)
    posts = ("castoff_api_requests_total", (("method", "POST"), ("route", "/v1/apps/{app}/machines"), ("status", "200")))
    assert after[posts] - before[posts] == 5
    boots = ("castoff_step_seconds_count", (("outcome", "complete"), ("step", "machine.boot")))
    assert after[boots] - before[boots] == 5
    assert after["castoff_store_free_bytes", ()] == 61_000_000_000
    assert ("castoff_hydration_chunks", (("state", "absent"),)) in after
