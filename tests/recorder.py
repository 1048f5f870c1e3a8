"""What a client says to a server and hears from it: a proxy that writes it down, and the same requests again to another server.

A recording is JSON lines. Ids that one server made are others at the next one: where an answer differs from the recorded one in
what looks like an id, later requests name the new one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

NONCE = "fly-machine-lease-nonce"
SHORTEST_ID = 8
LEAST_NUMBER = 10**9
CHANGING = ("request", "attached_machine_id")
"""Fields that are there or not by what happened just before."""


@dataclass
class Exchange:
    """A request and its answer."""

    command: str
    method: str
    path: str
    body: str
    nonce: str
    status: int
    answer: Any


@dataclass
class Recorder:
    """A proxy in front of a server."""

    url: str = ""
    command: str = ""
    """What the client is doing."""
    said: list[Exchange] = field(default_factory=list)
    schemes: set[str] = field(default_factory=set)
    """Of the Authorization headers."""

    def since(self, count: int) -> list[str]:
        """The requests after the first ``count``."""
        return [f"{exchange.method} {exchange.path} {exchange.status}" for exchange in self.said[count:]]

    def write(self, file: Path, *, names: dict[str, str]) -> None:
        """Writes it down, ``names`` replaced; of a request that was repeated until its answer was another, each answer once."""
        lines: list[str] = []
        for exchange in self.said:
            line = json.dumps(asdict(exchange), ensure_ascii=False)
            for name, other in names.items():
                line = line.replace(name, other)
            if not lines or json.loads(lines[-1]) | {"answer": None} != json.loads(line) | {"answer": None}:
                lines.append(line)
        file.write_text("\n".join(lines) + "\n")


def read(file: Path) -> list[Exchange]:
    """A recording."""
    return [Exchange(**json.loads(line)) for line in file.read_text().splitlines()]


@contextlib.asynccontextmanager
async def recording(target: str) -> AsyncIterator[Recorder]:
    """A proxy in front of ``target`` for the block."""
    recorder = Recorder()
    async with aiohttp.ClientSession(target) as session:

        async def forward(request: web.Request) -> web.Response:
            body = await request.read()
            headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "accept-encoding")}
            async with session.request(request.method, request.rel_url, data=body or None, headers=headers) as answer:
                text = await answer.read()
                recorder.schemes.add(request.headers.get("Authorization", "").partition(" ")[0])
                recorder.said.append(
                    Exchange(
                        command=recorder.command,
                        method=request.method,
                        path=str(request.rel_url),
                        body=body.decode(),
                        nonce=request.headers.get(NONCE, ""),
                        status=answer.status,
                        answer=json.loads(text) if text else None,
                    )
                )
                passed = {"fly-request-id": answer.headers["fly-request-id"]}
                return web.Response(status=answer.status, body=text, headers=passed, content_type=answer.content_type)

        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            recorder.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield recorder
        finally:
            await runner.cleanup()


class Replay:
    """The requests of a recording, for another server."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def text(self, recorded: str) -> str:
        """A part of a request, with the new server's ids."""
        for name in sorted(self._names, key=len, reverse=True):
            recorded = recorded.replace(name, self._names[name])
        return recorded

    def learn(self, recorded: Any, answer: Any) -> None:
        """The ids of an answer."""
        for one, other in _leaves(recorded, answer):
            is_id = isinstance(one, str) and isinstance(other, str) and len(one) >= SHORTEST_ID and " " not in one
            is_number = type(one) is int and type(other) is int and one > LEAST_NUMBER
            if one != other and (is_id or is_number):
                self._names[str(one)] = str(other)


def _leaves(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() & other.keys():
            yield from _leaves(one[name], other[name])
    elif isinstance(one, list) and isinstance(other, list):
        for first, second in zip(one, other, strict=False):
            yield from _leaves(first, second)
    else:
        yield one, other


def missing(recorded: Any, answer: Any, where: str = "$") -> Sequence[str]:
    """What an answer lacks of the recorded one, with which its client was content: fields, and their types. Lists are looked at
    by their first element; null says nothing."""
    if recorded is None:
        return ()
    if isinstance(recorded, dict) and isinstance(answer, dict):
        return [
            part
            for name, value in recorded.items()
            if name in answer or name not in CHANGING
            for part in (missing(value, answer[name], f"{where}.{name}") if name in answer else [f"{where}.{name}: not there"])
        ]
    if isinstance(recorded, list) and isinstance(answer, list):
        return missing(recorded[0], answer[0], f"{where}[]") if recorded and answer else ()
    numbers = isinstance(recorded, int | float) and isinstance(answer, int | float)
    if type(recorded) is type(answer) or (numbers and bool not in (type(recorded), type(answer))):
        return ()
    return [f"{where}: {type(answer).__name__}, was {type(recorded).__name__}"]
