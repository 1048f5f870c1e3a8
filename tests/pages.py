"""A page to look at: an agent's machines over a launcher that boots nothing but takes the steps of one that does, a rootfs that
comes in, a store; all served on loopback by the API's own server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tests.api_server import Images, KnownTokens

from castoff.agent.observe import ObservedLauncher
from castoff.agent.routes import counted
from castoff.api.creates import Creates, CreateSink
from castoff.api.hydration import count_hydration
from castoff.api.metrics import Metrics, StoreGauge
from castoff.api.page import Page, add_page
from castoff.api.parts import Parts
from castoff.api.server import build_app, serving
from castoff.api.stream import MachineStream
from castoff.fakes.launcher import FakeLauncher, World
from castoff.hydrate.map import write_map
from castoff.hydrate.profile import Boot, ChunkId, Profile, merge
from castoff.hydrate.profile_file import encode_profile, profile_path
from castoff.hydrate.record import MAP, STATE, FrontKind, LazyLayer, LazyRecord, write_record
from castoff.hydrate.state import write_state
from castoff.image.digest import Digest
from castoff.layers.toc import CHUNK
from castoff.lifecycle.apps import Apps
from castoff.lifecycle.attached import Attached
from castoff.lifecycle.database import Database
from castoff.lifecycle.launcher import Launch, Run
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.releases import Releases
from castoff.lifecycle.secrets import Secrets
from castoff.lifecycle.settings import AgentSettings
from castoff.lifecycle.volumes import Volumes
from castoff.store.usage import LayerUsage, MachineUsage, RootfsUsage, Usage
from castoff.timeline import step

OPERATOR = {"Authorization": "Bearer operator"}
MINE = {"Authorization": "Bearer mine"}


class SteppingLauncher(FakeLauncher):
    """Takes the steps of a create.

    Args:
        world: Where its machines run.
        slow: Seconds that a boot takes.
    """

    def __init__(self, world: World, slow: float = 0.0) -> None:
        super().__init__(world)
        self.slow = slow

    async def launch(self, launch: Launch) -> Run:
        """See the port."""
        await asyncio.gather(self._kernel(), self._rootfs())
        with step("vmm.qemu"):
            await asyncio.sleep(self.slow * 0.1)
        with step("machine.boot", machine=launch.machine) as boot:
            run = await super().launch(launch)
            await asyncio.sleep(self.slow)
            milliseconds = self.slow * 1000
            boot.attributes |= {"kernel_ms": milliseconds * 0.5, "drivers_ms": milliseconds * 0.1, "init_ms": milliseconds * 0.3}
        return run

    async def _kernel(self) -> None:
        for name in ("vmm.kernel", "vmm.initramfs"):
            with step(name):
                await asyncio.sleep(self.slow * 0.05)

    async def _rootfs(self) -> None:
        with step("rootfs.layered"):
            with step("rootfs.conversion", layers=3):
                await asyncio.gather(*(self._layer(size) for size in (20_000_000, 45_000_000, 9_000_000)))
            with step("ext4.compose"), step("ext4.tables"):
                await asyncio.sleep(self.slow * 0.05)
            with step("disk.reflink"):
                await asyncio.sleep(0)

    async def _layer(self, size: int) -> None:
        with step("layers.convert", total=size) as current:
            await asyncio.sleep(self.slow * size / 60_000_000)
            current.advance(size)


def lazy_rootfs(
    store: Path, machine: str, *, layers: Sequence[int] = (90, 300, 40), present: int = 200, filling: int = 12
) -> None:
    """The files of a machine whose data comes in: ``layers`` chunks each, the first ``present`` are here, then ``filling``."""
    directory = store / "machines" / machine
    directory.mkdir(parents=True)
    digests = [f"sha256:{hashlib.sha256(bytes([number])).hexdigest()}" for number in range(len(layers))]
    image = Digest.parse("sha256:" + "cd" * 32)
    total = sum(layers)
    record = LazyRecord(
        image=str(image),
        repository="registry.example/app",
        artifact="sha256:" + "ef" * 32,
        layers=tuple(LazyLayer(diff_id=digest, pack=digest) for digest in digests),
        size=2 * total * CHUNK,
        front=FrontKind.FANOTIFY,
    )
    write_record(directory, record)
    layer = np.concatenate([np.full(count, number) for number, count in enumerate(layers)])
    chunk = np.concatenate([np.arange(count) for count in layers])
    write_map(directory / MAP, np.arange(total) * 2, layer, chunk)
    write_state(directory / STATE, total, range(present))
    with (directory / STATE).open("r+b") as file:
        file.seek(present)
        file.write(b"\1" * filling)
    wanted = tuple(ChunkId(Digest.parse(digests[1]), number) for number in range(60, 200, 2))
    boots = (Boot(1_700_000_000, "0123456789abcdef", wanted),)
    path = profile_path(store, image)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_profile(Profile(image, boots, merge(boots))))


def a_usage() -> Usage:
    """A store of five layers, two root filesystems that share one, and three machines."""
    digests = [f"sha256:{hashlib.sha256(bytes([number])).hexdigest()}" for number in range(5)]
    machines = tuple(hashlib.sha256(bytes([number])).hexdigest()[:14] for number in range(3))
    sizes = (118_000_000, 74_500_000, 31_200_000, 8_100_000, 900_000)
    now = time.time()
    names = ("aa11-8589934592", "bb22-8589934592")
    rootfs = (
        RootfsUsage(
            names[0],
            "layered",
            "docker.io/library/postgres:17",
            "sha256:" + "ab" * 32,
            8 << 30,
            now,
            now,
            tuple(digests[:3]),
            232_000_000,
            9_000_000,
            machines[:2],
        ),
        RootfsUsage(
            names[1],
            "layered",
            "registry.example/shop/api:2026-11-20",
            "sha256:" + "cd" * 32,
            8 << 30,
            now,
            now - 4000,
            (digests[0], *digests[3:]),
            131_000_000,
            6_500_000,
            machines[2:],
            0.62,
        ),
    )
    layers = tuple(
        LayerUsage(
            digest,
            size,
            now - 60 * place,
            tuple(one.name for one in rootfs if digest in one.layers),
            tuple(id for one in rootfs if digest in one.layers for id in one.machines),
            0.62 if place == 3 else 1.0,
        )
        for place, (digest, size) in enumerate(zip(digests, sizes, strict=True))
    )
    taken = tuple(MachineUsage(id, "layered", names[0], 240_000_000, 4_000_000) for id in machines)
    return Usage(layers, rootfs, taken, 240_000_000, 252_000_000, 61_000_000_000, 0)


@dataclass
class Served:
    """A page that is served."""

    machines: Machines
    world: World
    launcher: FakeLauncher
    creates: Creates
    metrics: Metrics
    stream: MachineStream
    store: Path
    url: str


@contextlib.asynccontextmanager
async def served(
    directory: Path, *, sinks: Sequence[CreateSink] = (), slow: float | None = 0.0, **settings: object
) -> AsyncIterator[Served]:
    """Serves the page and the API; ``settings`` are AgentSettings'. With ``slow`` None launches take no steps either."""
    agent = AgentSettings(**settings)  # type: ignore[arg-type]
    store, world, metrics = directory / "store", World(), Metrics()
    (store / "machines").mkdir(parents=True)
    launcher, creates = FakeLauncher(world) if slow is None else SteppingLauncher(world, slow), Creates([metrics, *sinks])

    async def usage() -> Usage:
        return a_usage()

    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.open(directory / "castoff.db"))
        apps, volumes, secrets = Apps(database), Volumes(database, directory / "volumes"), Secrets(database)
        await volumes.load()
        for name in ("mine", "other"):
            await apps.create(name, organization="personal", network="default")
        machines = await stack.enter_async_context(
            Machines.open(database, ObservedLauncher(launcher, creates), secrets=secrets, volumes=volumes)
        )
        stream = await stack.enter_async_context(MachineStream.open(machines))
        metrics.watch(machines, stream)
        gauges = StoreGauge(metrics, usage, lambda: 61_000_000_000, partial(count_hydration, store / "machines"))
        page = Page(
            machines=machines,
            stream=stream,
            creates=creates,
            metrics=metrics,
            store=store,
            usage=usage,
            gauges=gauges,
            hosts=agent.hosts,
        )
        parts = Parts(
            machines=machines,
            apps=apps,
            volumes=volumes,
            attached=Attached(volumes, machines),
            secrets=secrets,
            releases=Releases(database),
            authenticator=KnownTokens(),
            images=Images(),
            settings=agent,
        )
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        app = build_app(parts, [counted(metrics, creates), partial(add_page, page=page)])
        await stack.enter_async_context(serving(app, [bound]))
        yield Served(machines, world, launcher, creates, metrics, stream, store, url)
