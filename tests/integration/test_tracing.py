"""Creates as traces: what a collector is sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.lifecycle import settled, wanted
from tests.pages import served

from castoff.agent.tracing import Tracer, check_endpoint
from castoff.api.creates import Creates
from castoff.errors import Invalid
from castoff.lifecycle.states import State
from castoff.timeline import step


class Collector:
    """Takes traces as OTLP/HTTP has it."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.resources: list[dict[str, Any]] = []
        self.status = 200
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        """One export."""
        assert request.content_type == "application/json"
        for resource in (await request.json())["resourceSpans"]:
            if self.status == 200:
                self.resources.append(resource["resource"])
                self.spans += [span for scope in resource["scopeSpans"] for span in scope["spans"]]
        return web.json_response({}, status=self.status)


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on loopback."""
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        yield collector
    finally:
        await runner.cleanup()


async def test_a_create_is_one_trace(tmp_path: Path) -> None:
    """From the request to the guest's init: every step a span, each within its parent, all of one trace with one root."""
    async with (
        collecting() as collector,
        Tracer.open(collector.url) as tracer,
        served(tmp_path, sinks=[tracer], slow=0.01) as page,
    ):
        with page.creates.asked("mine"):
            machine = await page.machines.create("mine", wanted())
        await settled(page.machines, machine, State.STARTED)
    spans = {span["spanId"]: span for span in collector.spans}
    assert len(spans) == len(collector.spans)
    assert {len(span["spanId"]) for span in collector.spans} == {16}
    [trace] = {span["traceId"] for span in collector.spans}
    assert len(bytes.fromhex(trace)) == 16
    [root] = [span for span in collector.spans if not span["parentSpanId"]]
    assert root["name"] == "create"
    assert {"key": "castoff.machine", "value": {"stringValue": machine.id}} in root["attributes"]
    names = {span["name"] for span in collector.spans}
    assert {"agent.resolve", "agent.launch", "layers.convert", "machine.boot", "guest.kernel", "guest.init"} <= names
    for span in collector.spans:
        assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
        if span is not root:
            parent = spans[span["parentSpanId"]]
            assert int(parent["startTimeUnixNano"]) <= int(span["startTimeUnixNano"])
            assert int(span["endTimeUnixNano"]) <= int(parent["endTimeUnixNano"])
    assert {"key": "service.name", "value": {"stringValue": "castoff"}} in collector.resources[0]["attributes"]


async def test_a_failure_is_told(tmp_path: Path) -> None:
    """The span that failed and the root have the failure as their status."""
    async with collecting() as collector, Tracer.open(collector.url) as tracer, served(tmp_path, sinks=[tracer]) as page:
        page.world.failing.add("broken:1")
        machine = await page.machines.create("mine", wanted("broken:1", restart={"policy": "no"}))
        await settled(page.machines, machine, State.FAILED, State.STOPPED)
    status = {span["name"]: span["status"] for span in collector.spans}
    assert status["create"] == status["machine.boot"] == {"code": 2, "message": "broken:1 does not boot"}
    assert status["layers.convert"] == {}


async def test_a_collector_that_is_not_there_holds_nothing_up() -> None:
    """What it does not take is lost and counted, and people are told once; when it is back, they are told again."""
    said: list[str] = []
    async with collecting() as collector, Tracer.open(collector.url, notice=said.append) as tracer:
        creates = Creates([tracer])

        async def sends(status: int) -> None:
            collector.status = status
            dropped, spans = tracer.dropped, len(collector.spans)
            with creates.launching(machine="m", app="a", image="i"), step("s"):
                pass
            while (tracer.dropped, len(collector.spans)) == (dropped, spans):
                await asyncio.sleep(0.01)

        await sends(503)
        await sends(503)
        await sends(200)
    assert tracer.dropped == 4
    assert [span["name"] for span in collector.spans] == ["s", "create"]
    assert len(said) == 2
    assert "503" in said[0]


@pytest.mark.parametrize("text", ["localhost:4318", "ftp://host", "http://", "http://host:port", "http://host?x=1"])
def test_an_endpoint_is_a_url(text: str) -> None:
    """What is none is refused when the agent starts."""
    with pytest.raises(Invalid, match="otlp_endpoint"):
        check_endpoint(text)
