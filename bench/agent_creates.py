"""The agent's own share of a create: from the first bytes of the POST that the agent read to the VMM's exec, as the agent's own
timeline has both; beside it what the client sees. Twice:

- over the launcher in memory, where exec is the call of the launcher: HTTP, tokens, checks, what is written down before it is
  acted on, supervision, metrics, the page's stream. That is the agent by itself.
- `castoff agent` as it is installed, with a stand-in for the VMM: castoff.create is in it as well, which makes the machine's
  directory, record, clone and initramfs, durably, in the same process.

The clock starts in the agent, so what a request waits in the kernel before the agent reads it is only in the client's rows; what
it waits in the agent for two hundred others is in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.cold import build
from bench.measure import Failed, cpu_seconds, percentile, started
from bench.results import Row, Target, at_most
from bench.stage import Stage

__all__ = ["ALONE", "Kind", "measured", "reached", "rows"]

AT_ONCE = 200
_START_SECONDS = 60
_MACHINES = "/v1/apps/share/machines"

Ask = Callable[..., Awaitable[Any]]
"""Method, path and body to an answer's JSON."""


@dataclass(frozen=True)
class Kind:
    """One of the two.

    Attributes:
        what: For people.
        step: The timeline's step that starts at exec.
        each: How many are made one by one.
        rounds: How often two hundred are made at once.
    """

    what: str
    step: str
    each: int
    rounds: int


ALONE = Kind("the agent by itself", "agent.launch", 300, 5)
WHOLE = Kind("agent and castoff.create", "fakes.vmm", 50, 3)


async def rows(stage: Stage) -> list[Row]:
    """Of the whole agent, with a stand-in for the VMM."""
    image = stage.publish("small")
    build(stage, image)
    config = {"image": image.pinned, "init": {"exec": ["sleep", "600"]}, "restart": {"policy": "no"}}
    async with _installed(stage) as (ask, cpu):
        return await measured(ask, _MACHINES, lambda _: config, WHOLE, cpu, quick=stage.quick)


async def measured(
    ask: Ask, machines: str, config: Callable[[int], Any], kind: Kind, cpu: Callable[[], float], *, quick: bool
) -> list[Row]:
    """The rows of one kind.

    Args:
        ask: Asks the agent.
        machines: The path of an app's machines.
        config: Of a machine of a number.
        kind: What is measured.
        cpu: Seconds of CPU that the agent has taken.
        quick: Fewer of each.
    """

    async def create(number: int) -> tuple[str, float]:
        begun = time.perf_counter()
        made = await ask("POST", machines, {"config": config(number)})
        return made["id"], time.perf_counter() - begun

    async def settle(made: Sequence[tuple[str, float]]) -> list[float]:
        """When each reached exec; they are gone afterwards."""
        for machine, _ in made:
            await ask("GET", f"{machines}/{machine}/wait?state=started&timeout=60")
        reached_at = [await reached(ask, machine, kind.step) for machine, _ in made]
        for machine, _ in made:
            await ask("DELETE", f"{machines}/{machine}?force=true")
        return reached_at

    for number in range(5):  # imports, the first connections, SQLite's first pages
        await settle([await create(number)])
    alone, seen = [], []
    for number in range(20 if quick else kind.each):
        made = [await create(number)]
        seen.append(made[0][1])
        alone += await settle(made)
    together: list[float] = []
    client: list[float] = []
    each: list[float] = []
    for _ in range(1 if quick else kind.rounds):
        before = cpu()
        made = await asyncio.gather(*(create(number) for number in range(AT_ONCE)))
        for machine, _ in made:
            await ask("GET", f"{machines}/{machine}/wait?state=started&timeout=60")
        each.append((cpu() - before) / AT_ONCE)
        together += await settle(made)
        client += [seconds for _, seconds in made]
    told = {"cpu_ms_each": [value * 1e3 for value in each], "rounds": len(each)}
    return [
        _row(kind, "one by one: POST to exec, p50", percentile(alone, 0.5), at_most(15), {"rounds": len(alone)}),
        _row(kind, "one by one: POST to its answer, at the client, p50", percentile(seen, 0.5), None, {}),
        _row(kind, f"{AT_ONCE} at once: POST to exec, p50", percentile(together, 0.5), None, told),
        _row(kind, f"{AT_ONCE} at once: POST to exec, p99", percentile(together, 0.99), at_most(60), told),
        _row(kind, f"{AT_ONCE} at once: POST to its answer, at the client, p99", percentile(client, 0.99), None, {}),
        _row(kind, f"{AT_ONCE} at once: CPU of the agent's process for each, to started", percentile(each, 0.5), None, told),
    ]


def _row(kind: Kind, name: str, seconds: float, target: Target | None, told: dict[str, Any]) -> Row:
    return Row("agent", f"create ({kind.what}), {name}", seconds * 1e3, "ms", target, told)


async def reached(ask: Ask, machine: str, step: str) -> float:
    """Seconds from the request's first bytes to the start of a step of the machine's create."""
    create = await ask("GET", f"/page/machines/{machine}/create")
    return float(next(one["started"] for one in create["steps"] if one["name"] == step))


@contextlib.asynccontextmanager
async def _installed(stage: Stage) -> AsyncIterator[tuple[Ask, Callable[[], float]]]:
    """`castoff agent` in the stage's state directory, whose VMMs are stand-ins."""
    command = [str(word) for word in stage.castoff("agent")]
    place = command.index("--config") + 1
    command[place] = await asyncio.to_thread(_with_stand_in, Path(command[place]))
    with started(command, log=stage.directory / "agent.log") as process:
        connector = aiohttp.UnixConnector(path=str(stage.state / "agent" / "agent.sock"), limit=0)
        async with aiohttp.ClientSession("http://localhost", connector=connector) as session:

            async def ask(method: str, path: str, body: Any = None) -> Any:
                async with session.request(method, path, json=body) as answer:
                    if answer.status >= 300:
                        raise Failed(f"{method} {path}: {answer.status}: {(await answer.text())[:500]}")
                    return await answer.json(content_type=None)

            await _listens(ask)
            await ask("POST", "/v1/apps", {"name": "share", "org_slug": "personal"})
            yield ask, lambda: cpu_seconds(process.pid)


def _with_stand_in(settings: Path) -> str:
    changed = settings.with_name("stand-in.toml")
    changed.write_text(f'{settings.read_text()}\n[vmm]\norder = ["stand-in"]\n[agent]\nlisten = ""\n')
    return str(changed)


async def _listens(ask: Ask) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            await ask("GET", "/v1/apps?org_slug=personal")
            return
        except aiohttp.ClientConnectionError:
            if time.monotonic() > deadline:
                raise Failed("the agent does not listen") from None
            await asyncio.sleep(0.05)
