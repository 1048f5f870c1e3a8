"""The page at ``/``, what it asks for, and ``/metrics``.

The page itself is static files and needs no token; it asks its reader for one, keeps it for the tab
(``sessionStorage``) and sends it in the ``Authorization`` header with every look. There is no cookie, so a foreign page can
make a browser ask but never with a token; and a foreign name that was pointed at this host (DNS rebinding) is refused by its
``Host`` header. The page's policy lets no other origin's script, style, frame or connection in, nor inline ones, and names
from clients become text, never markup.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from castoff.api.auth import PUBLIC, Forbidden, grant_of, require
from castoff.api.creates import Creates
from castoff.api.hydration import hydration_map
from castoff.api.metrics import CONTENT_TYPE, Metrics, StoreGauge
from castoff.api.stream import Fleet, MachineStream, event_row, machine_row
from castoff.errors import NotFound
from castoff.store.usage import Usage

__all__ = ["Page", "add_page"]

_KINDS: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_BEAT: Final = 15.0
"""Seconds after which a quiet stream shows that it lives."""
_LIFE: Final = 300.0
"""Seconds after which a browser has to ask anew, and its token is looked at again."""
_USAGE: Final = 5.0
"""Seconds for which a look at the store is good."""
_EVENTS: Final = 50


@dataclass(kw_only=True)
class Page:
    """What the page shows.

    Attributes:
        machines: The agent's.
        stream: Of their changes.
        creates: The last ones.
        metrics: For ``/metrics``.
        gauges: Looked at before each scrape, if any.
        store: The store's root directory.
        usage: Looks at the store.
        hosts: ``agent.hosts``.
    """

    machines: Fleet
    stream: MachineStream
    creates: Creates
    metrics: Metrics
    store: Path
    usage: Callable[[], Awaitable[Usage]]
    gauges: StoreGauge | None = None
    hosts: tuple[str, ...] = ()
    _seen: tuple[float, Usage] | None = field(default=None, init=False)
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def store_usage(self) -> Usage:
        """The store, as it was a moment ago: one look for all who ask."""
        async with self._looking:
            if self._seen is None or time.monotonic() - self._seen[0] > _USAGE:
                usage = await self.usage()
                self._seen = time.monotonic(), usage
            return self._seen[1]


def add_page(app: web.Application, page: Page) -> None:
    """Adds the page's routes to an application whose middleware authenticates (castoff.api.auth)."""
    for file in sorted((Path(__file__).parent / "web").iterdir()):
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        app.router.add_get(path, _guarded(page, _file(file.read_bytes(), _KINDS[file.suffix])))
        app[PUBLIC].add(path)
    for path, handler in (
        ("/page/stream", _stream),
        ("/page/machines/{id}", _machine),
        ("/page/machines/{id}/create", _create),
        ("/page/machines/{id}/rootfs", _rootfs),
        ("/page/creates", _creates),
        ("/page/store", _store),
        ("/metrics", _metrics),
    ):
        app.router.add_get(path, _guarded(page, handler))

    async def close(_: web.Application) -> None:
        page.stream.close()  # else the server would wait for the browsers

    app.on_shutdown.append(close)


Handler = Callable[[Page, web.Request], Awaitable[web.StreamResponse]]


def _guarded(page: Page, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def guarded(request: web.Request) -> web.StreamResponse:
        _check_host(request, page.hosts)
        return await handler(page, request)

    return guarded


def _check_host(request: web.Request, hosts: tuple[str, ...]) -> None:
    """An address cannot be pointed elsewhere; a name can, so it must be known.

    Raises:
        Forbidden: It is not.
    """
    text = request.host.lower()
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    name = name.rstrip(".")
    if name == "localhost" or name in (host.lower() for host in hosts):
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise Forbidden(f"the page is not served under the name {name[:100]!r}", hint="add it to `agent.hosts`") from None


def _file(data: bytes, kind: str) -> Handler:
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'

    async def send(_: Page, request: web.Request) -> web.StreamResponse:
        headers = _HEADERS | {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=data, content_type=kind, charset="utf-8", headers=headers)

    return send


def _json(value: Any) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), content_type="application/json", headers=_HEADERS | {"Cache-Control": "no-store"}
    )


async def _stream(page: Page, request: web.Request) -> web.StreamResponse:
    """Machines as they change: events ``machines`` (all of them), ``changes``, ``again`` (nothing was missed until here)."""
    headers = _HEADERS | {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)

    def dropped() -> None:
        if request.transport is not None:
            request.transport.abort()  # ends a write that waits for a browser which does not read

    ends = time.monotonic() + _LIFE
    with page.stream.subscribe(grant_of(request).app, request.headers.get("Last-Event-ID", ""), dropped) as subscriber:
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # the browser went away
            while time.monotonic() < ends:
                try:
                    async with asyncio.timeout(_BEAT):
                        frame = await subscriber.next()
                except TimeoutError:
                    frame = b": \n\n"
                if frame is None:
                    break
                await response.write(frame)
    return response


async def _machine(page: Page, request: web.Request) -> web.StreamResponse:
    machine = page.machines.get(grant_of(request).app, request.match_info["id"])
    return _json(
        {
            "machine": machine_row(machine),
            "config": _config(machine),
            "events": [event_row(event) for event in machine.events[:_EVENTS]],
        }
    )


def _config(machine: Any) -> dict[str, Any]:
    """Of its configuration what tells it from others: no value of a variable, no file."""
    config = machine.config
    return {
        "cpus": config.guest.cpus if config.guest else None,
        "memory_mb": config.guest.memory_mb if config.guest else None,
        "restart": config.restart.policy if config.restart else None,
        "auto_destroy": bool(config.auto_destroy),
        "schedule": config.schedule,
        "mounts": [mount.path for mount in config.mounts or ()],
        "services": [service.internal_port for service in config.services or ()],
    }


async def _create(page: Page, request: web.Request) -> web.StreamResponse:
    machine = page.machines.get(grant_of(request).app, request.match_info["id"])
    create = page.creates.of(machine.id)
    if create is None:
        raise NotFound(f"machine {machine.id} was not launched lately", hint="the agent remembers its last launches only")
    return _json(create.to_dict())


async def _creates(page: Page, request: web.Request) -> web.StreamResponse:
    """The last creates, without their steps."""
    rows = []
    for create in page.creates.last(grant_of(request).app)[:50]:
        rows.append({"machine": create.machine, "app": create.app, "image": create.image, "began": create.began})
        rows[-1] |= {"ended": create.ended, "state": create.state, "error": create.error}
    return _json(rows)


async def _rootfs(page: Page, request: web.Request) -> web.StreamResponse:
    machine = page.machines.get(grant_of(request).app, request.match_info["id"])
    return _json(await asyncio.to_thread(hydration_map, page.store / "machines" / machine.id, page.store))


async def _store(page: Page, request: web.Request) -> web.StreamResponse:
    require(request, None)
    return _json(await page.store_usage())


async def _metrics(page: Page, request: web.Request) -> web.StreamResponse:
    require(request, None)
    if page.gauges is not None:
        await page.gauges.refresh()
    await page.metrics.look()
    return web.Response(
        body=page.metrics.render(), headers=_HEADERS | {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
    )
