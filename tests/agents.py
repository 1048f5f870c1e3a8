"""`castoff agent` as a process of its own, and requests to it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from machines import Castoff


class AgentProcess:
    """A running agent."""

    def __init__(self, process: subprocess.Popen[bytes], state: Path, log: Path) -> None:
        self.process = process
        self.socket = state / "agent" / "agent.sock"
        self._log = log

    @property
    def said(self) -> str:
        """What it has written to stderr."""
        return self._log.read_text()

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill()
        self.process.wait(30)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[aiohttp.ClientSession]:
        """The operator's connection."""
        connector = aiohttp.UnixConnector(path=str(self.socket))
        async with aiohttp.ClientSession("http://agent", connector=connector) as session:
            yield session


@contextlib.contextmanager
def agent(castoff: Castoff, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[AgentProcess]:
    """An agent that listens; asked to end at the end of the block."""
    log = castoff.state.parent / f"agent-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*castoff.command("agent"), *flags], stderr=output, stdout=output, env=env)
    running = AgentProcess(process, castoff.state, log)
    try:
        deadline = time.monotonic() + 60
        while "listening at" not in running.said:
            assert process.poll() is None, running.said
            assert time.monotonic() < deadline, running.said
            time.sleep(0.02)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def agent_killed_at_start(castoff: Castoff, after: float, *, env: Mapping[str, str] | None = None) -> None:
    """An agent that is killed ``after`` seconds, wherever it is by then."""
    process = subprocess.Popen(castoff.command("agent"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    process.kill()
    process.wait(30)


async def asked(session: aiohttp.ClientSession, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
    """An answer's JSON; its status must be ``status``."""
    async with session.request(method, path, json=body) as answer:
        text = await answer.text()
        assert answer.status == status, text
        return await answer.json(content_type=None) if text else None
