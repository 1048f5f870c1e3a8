"""Orders as an operator gives them: the command line, agents as processes that are killed, real NATS and registry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

import daemons
from agents import AgentProcess, agent
from daemons import free_port
from fleet_hosts import share_key
from hostile_registry import HostileRegistry
from machines import Castoff
from nats_servers import nats_server
from oci_builder import Blob, BuiltImage, LayerTar, build_image, write_layout


def image(seed: int) -> BuiltImage:
    return build_image([LayerTar().file(f"data-{seed}", bytes([seed]) * 300_000)], cmd=["true"])


def host(root: Path, name: str, nats: str) -> Castoff:
    """A host's configuration and state."""
    port = free_port()
    state, config = root / name, root / f"{name}.toml"
    share_key(state, bytes(range(32)))
    config.write_text(
        f'store.backing = "native"\n[agent]\nlisten = ""\nregion = "fra"\n'
        f'[fleet]\nurls = ["{nats}"]\nhost = "{name}"\n'
        f'[peers]\nlisten = "127.0.0.1:{port}"\nurl = "http://127.0.0.1:{port}"\n'
    )
    return Castoff(state, "", config)


@contextlib.contextmanager
def hosts(root: Path, nats: str, *names: str) -> Iterator[dict[str, tuple[Castoff, AgentProcess]]]:
    """Agents that have met."""
    with contextlib.ExitStack() as stack:
        found = {name: host(root, name, nats) for name in names}
        running = {name: (castoff, stack.enter_context(agent(castoff))) for name, castoff in found.items()}
        first = found[names[0]]
        wait_until(lambda: len(first.json("fleet", "hosts")) == len(names))
        yield running


def wait_until(ready: Callable[[], object], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.1)


def progress(castoff: Castoff, order: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(castoff("fleet", "orders", "show", order, "--json").stdout)["progress"]}


def test_an_order_from_the_command_line(scratch_xfs: Path, tmp_path: Path, registry: daemons.Registry) -> None:
    """Two hosts make an image ready; the command waits for them; a standing order is cancelled; nonsense is refused."""
    layout = write_layout(tmp_path / "layout", {"v1": image(1)})
    reference = f"{registry.host}/orders/app:v1"
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests"]
    subprocess.run([*command, f"oci:{layout}:v1", f"docker://{reference}"], check=True, timeout=60)
    with nats_server(tmp_path / "nats") as nats, hosts(scratch_xfs, nats.url, "one", "two") as running:
        castoff = running["one"][0]
        given = castoff("preload", "--hosts", "all", "--disk-size", "64M", reference)
        assert given.returncode == 0, given.stderr
        assert b"open on all: 2 done" in given.stdout
        assert b"is given" in given.stderr
        assert len(running["two"][0].json("rootfs", "list")) == 1
        order = castoff.json("fleet", "orders")[0]
        assert (order["complete"], order["by"], order["chosen"]) == (True, "one", 2)
        standing = castoff.json("preload", "--hosts", "region=fra", "--keep", "--window", "01:00-05:00", reference)
        assert castoff("fleet", "orders", "cancel", standing["id"]).stdout.endswith(b": cancelled\n")
        missing = castoff("preload", "--hosts", "all", f"{registry.host}/orders/nothing")
        assert missing.returncode == 1
        assert b"failed" in missing.stdout
        refused = castoff("preload", "--hosts", "colour=red", reference)
        assert b"chooses no hosts" in refused.stderr
        assert refused.returncode not in (0, 1)


async def test_agents_are_killed_in_the_middle(scratch_xfs: Path, tmp_path: Path) -> None:
    """One host of two has an order for one, and converts for another order: kill -9. The other has its place and its conversion;
    the killed one, started again, does its part of the order for all, and that was its second attempt."""
    first, second = image(2), image(3)
    registry, go = HostileRegistry(), asyncio.Event()
    registry.add("first", first)
    registry.add("second", second)
    layers = {layer.digest for built in (first, second) for layer in built.layers}

    async def slowly(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        if document is not None and document.digest in layers:
            await go.wait()
        return None

    registry.faults.append(slowly)
    async with registry.running():
        with nats_server(tmp_path / "nats") as nats:
            await asyncio.to_thread(_kill_and_see, scratch_xfs, nats.url, registry, go, asyncio.get_running_loop())
    asked = [path.rpartition("/")[2] for path in registry.paths("GET")]
    assert [asked.count(built.layers[0].digest) for built in (first, second)] == [2, 2]


def _kill_and_see(root: Path, nats: str, registry: HostileRegistry, go: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    with hosts(root, nats, "one", "two") as running:
        castoffs = {name: castoff for name, (castoff, _) in running.items()}

        def give(which: str, name: str) -> str:
            flags = ("--hosts", which, "--disk-size", "64M", "--detach")
            return str(castoffs["one"].json("preload", *flags, f"{registry.host}/{name}")["id"])

        for_one = give("1", "first")
        wait_until(lambda: any(row["state"] == "running" for row in progress(castoffs["one"], for_one).values()))
        victim = next(name for name, row in progress(castoffs["one"], for_one).items() if row["state"] == "running")
        other = next(name for name in castoffs if name != victim)
        for_all = give(f"host={victim}", "second")
        wait_until(lambda: victim in progress(castoffs["one"], for_all))
        wait_until(lambda: len([path for path in registry.paths("GET") if "/blobs/" in path]) >= 4)
        running[victim][1].kill()
        loop.call_soon_threadsafe(go.set)
        wait_until(lambda: progress(castoffs[other], for_one).get(other, {}).get("state") == "done")
        with agent(castoffs[victim]):
            wait_until(lambda: progress(castoffs[other], for_all)[victim]["state"] == "done")
            assert progress(castoffs[other], for_all)[victim]["attempts"] == 2
            assert len(castoffs[victim].json("rootfs", "list")) == 1
        assert len(castoffs[other].json("rootfs", "list")) == 1
