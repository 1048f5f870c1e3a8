"""The published description's own adversary: schemathesis makes requests of it, good and bad, and none makes the server fail."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from tests.api_server import running

from castoff.api.routes.unserved import UNSERVED

SPECIFICATION = json.loads((Path(__file__).parents[1] / "specs" / "machines-openapi.json").read_text())
SCHEMA = schemathesis.openapi.from_dict(SPECIFICATION)
NAMES = {"app_name": "mine", "org_slug": "personal"}
EXAMPLES = 4


def route(path: str) -> str:
    """A path whose parameters have no names."""
    return re.sub(r"\{\w+\}", "{}", path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server in a thread of its own: schemathesis asks and waits."""
    url: Future[str] = Future()
    loop = asyncio.new_event_loop()
    end = asyncio.Event()

    async def serve() -> None:
        async with running(tmp_path_factory.mktemp("api")) as api:
            url.set_result(api.url)
            await end.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield url.result(30)
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
        loop.close()


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_no_request_makes_the_server_fail(case: schemathesis.Case, server: str) -> None:
    """Never a 5xx but the 501 of what is refused by name; always JSON where there is a body."""
    for name, value in NAMES.items():
        if name in case.path_parameters:
            case.path_parameters[name] = value
    if "timeout" in case.query:
        case.query["timeout"] = "1"
    answer = case.call(base_url=f"{server}/v1", headers={"Authorization": "Bearer operator"})
    refused = (case.method.upper(), route(f"/v1{case.path}")) in {(verb, route(path)) for verb, path in UNSERVED}
    assert answer.status_code < 500 or (answer.status_code == 501 and refused), answer.text
    if answer.content:
        answer.json()
    else:
        assert answer.status_code == 204
