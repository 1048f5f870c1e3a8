"""The Machines API on a free port and a unix socket, over a launcher that boots nothing, with tokens that the test knows."""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from castoff.api.auth import Grant
from castoff.api.parts import ImageDescription, Parts
from castoff.api.server import Register, build_app, serving
from castoff.errors import NotFound
from castoff.fakes.launcher import FakeLauncher, World
from castoff.lifecycle.apps import Apps
from castoff.lifecycle.attached import Attached
from castoff.lifecycle.database import Database
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.releases import Releases
from castoff.lifecycle.secrets import Secrets
from castoff.lifecycle.settings import AgentSettings
from castoff.lifecycle.volumes import Volumes

TOKENS = {
    "operator": Grant(name="operator"),
    "reader": Grant(name="reader", read_only=True),
    "mine": Grant(name="mine", app="mine"),
    "other": Grant(name="other", app="other"),
}


class KnownTokens:
    """An Authenticator over :data:`TOKENS`."""

    async def authenticate(self, presented: str) -> Grant | None:
        """What a token allows."""
        return next((grant for token, grant in TOKENS.items() if hmac.compare_digest(token.encode(), presented.encode())), None)


class Images:
    """Knows every image but ``missing``."""

    async def describe(self, reference: str) -> ImageDescription:
        """What an image is."""
        if "missing" in reference:
            raise NotFound(f"there is no image {reference}")
        digest = "sha256:" + "a" * 64
        return ImageDescription(reference=reference.partition("@")[0], digest=digest, size=1234, annotations={})


@dataclass
class Api:
    """A running server."""

    parts: Parts
    url: str
    path: Path
    session: aiohttp.ClientSession
    token: str = "operator"

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, status: int | None = 200, **options: Any
    ) -> Any:
        """One request; its answer's JSON, or None for an empty body. Other statuses than ``status`` fail the test."""
        headers = {"Authorization": f"Bearer {token or self.token}", **options.pop("headers", {})}
        if body is not None:
            options["json"] = body
        async with self.session.request(method, f"{self.url}{path}", headers=headers, **options) as answer:
            text = await answer.text()
            assert answer.headers["fly-request-id"]
            assert status is None or answer.status == status, f"{method} {path}: {answer.status} {text}"
            if not text:
                assert answer.status in (204,), f"{method} {path} has no body"
                return None
            return await answer.json()

    async def response(self, method: str, path: str, body: Any, query: dict[str, str]) -> tuple[int, Any]:
        """One request; its status and its answer's JSON, None for an empty body."""
        headers = {"Authorization": f"Bearer {self.token}"}
        data = None if body is None else json.dumps(body).encode()
        async with self.session.request(method, f"{self.url}{path}", data=data, params=query, headers=headers) as answer:
            text = await answer.read()
            assert text or answer.status == 204, f"{method} {path}: {answer.status} has no body"
            return answer.status, json.loads(text) if text else None


@contextlib.asynccontextmanager
async def running(
    directory: Path, register: Sequence[Register] = (), *, world: World | None = None, **settings: Any
) -> AsyncIterator[Api]:
    """A server with the apps ``mine`` and ``other``, over machines of ``world``; ``settings`` are AgentSettings'."""
    tcp, local = socket.socket(socket.AF_INET), socket.socket(socket.AF_UNIX)
    tcp.bind(("127.0.0.1", 0))
    local.bind(str(directory / "agent.sock"))
    async with contextlib.AsyncExitStack() as stack:
        parts = await stack.enter_async_context(_parts(directory, AgentSettings(**settings), world or World()))
        await stack.enter_async_context(serving(build_app(parts, register), [tcp, local]))
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Api(parts, f"http://127.0.0.1:{tcp.getsockname()[1]}", directory / "agent.sock", session)


@contextlib.asynccontextmanager
async def _parts(directory: Path, settings: AgentSettings, world: World) -> AsyncIterator[Parts]:
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.open(directory / "castoff.db"))
        apps, volumes, secrets = Apps(database), Volumes(database, directory / "volumes"), Secrets(database)
        await volumes.load()
        for name in ("mine", "other"):
            await apps.create(name, organization="personal", network="default")
        launcher = FakeLauncher(world)
        machines = await stack.enter_async_context(Machines.open(database, launcher, secrets=secrets, volumes=volumes))
        yield Parts(
            machines=machines,
            apps=apps,
            volumes=volumes,
            attached=Attached(volumes, machines),
            secrets=secrets,
            releases=Releases(database),
            authenticator=KnownTokens(),
            images=Images(),
            settings=settings,
        )
