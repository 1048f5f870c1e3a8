"""Machines that are created at once through `castoff agent`, beside as many QEMUs that are started at once without it; and one of
them that goes on from its memory, beside its own boot."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp

from bench import inside
from bench.cold import build
from bench.measure import Failed, percentile, started
from bench.results import Row, at_most
from bench.stage import Published, Stage
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_session import Exit, GuestSession, Ready
from castoff.vmm.initramfs import assemble
from castoff.vmm.kernel import find_kernel
from castoff.vmm.qemu import QemuVmm
from castoff.vmm.vmm import MachineSpec

__all__ = ["rows"]

_MEMORY = 256
"""MiB of each."""
_ARGV = ("sleep", "600")
_ENV = ("PATH=/bin:/usr/bin",)
_SECONDS = 120
_EXECS = 20
_ROUNDS = 3
_APP = "/v1/apps/bench"


def rows(stage: Stage) -> Iterable[Row]:
    """Creates of a warm image to started, ``exec true``, and a start from memory."""
    image = stage.publish("small")
    build(stage, image)
    count = 4 if stage.quick else 20
    bare, channel = asyncio.run(_bare(stage, image, count))
    ours, api, starts = asyncio.run(_agent(stage, image, count))
    told = {"agent_seconds": ours, "bare_seconds": bare}
    yield Row(
        "agent", f"{count} creates at once, warm, to started / as many bare QEMUs to ready", ours / bare, "x", at_most(1.1), told
    )
    middle = {"api_ms": percentile(api, 0.5) * 1e3, "channel_ms": percentile(channel, 0.5) * 1e3}
    added = middle["api_ms"] - middle["channel_ms"]
    yield Row("agent", "exec true through the API - through the guest's channel, p50", added, "ms", at_most(30), middle)
    seconds = {f"{name}_seconds": percentile(taken, 0.5) for name, taken in starts.items()}
    ratio = seconds["resume_seconds"] / seconds["boot_seconds"]
    yield Row("agent", "start of a suspended machine / of the same one stopped, to started", ratio, "x", at_most(0.5), seconds)


async def _bare(stage: Stage, image: Published, count: int) -> tuple[float, list[float]]:
    """Seconds until all are ready, of machines whose drives and initramfs lie there already; and those of each exec in one."""
    async with inside.host(stage) as host, inside.asked(host, image) as asked, contextlib.AsyncExitStack() as stack:
        rootfs = await asked.chain.locate(asked.request)
        if rootfs is None:
            raise Failed("the image has no rootfs")
        kernel = await find_kernel(host.config.vmm, host.store.kernels)
        vmm, specs = QemuVmm(host.config.vmm), []
        for number in range(count):
            name = f"{number:014x}"
            directory = host.store.machines / name
            directory.mkdir()
            stack.callback(shutil.rmtree, directory)
            drives = await rootfs.clone(name, directory)
            stack.push_async_callback(rootfs.release, name)
            initramfs = assemble(kernel, GuestSettings(argv=_ARGV, env=_ENV), directory / "initramfs")
            specs.append(MachineSpec(name, directory, 1, _MEMORY << 20, kernel.path, initramfs, tuple(drives)))
        begun = time.perf_counter()
        channels = await asyncio.gather(*(stack.enter_async_context(_booted(vmm, spec)) for spec in specs))
        seconds = time.perf_counter() - begun
        return seconds, [await _executed(channels[0]) for _ in range(_EXECS)]


@contextlib.asynccontextmanager
async def _booted(vmm: QemuVmm, spec: MachineSpec) -> AsyncIterator[GuestChannel]:
    handle = await vmm.start(spec)
    try:
        async with await GuestChannel.connect(handle, _SECONDS) as channel:
            await _until(channel, Ready)
            yield channel
    finally:
        await handle.kill()


async def _until(source: GuestChannel | GuestSession, kind: type) -> None:
    async with asyncio.timeout(_SECONDS):
        async for event in source.events():
            if isinstance(event, kind):
                return
    raise Failed(f"a guest ended without {kind.__name__}")


async def _executed(channel: GuestChannel) -> float:
    begun = time.perf_counter()
    session = await channel.execute(GuestSettings(argv=("true",), env=_ENV))
    await _until(session, Exit)
    return time.perf_counter() - begun


async def _agent(stage: Stage, image: Published, count: int) -> tuple[float, list[float], dict[str, list[float]]]:
    """The same through an agent, from the first POST."""
    command = [*stage.castoff("agent")]
    with started(command):
        connector = aiohttp.UnixConnector(path=str(stage.state / "agent" / "agent.sock"), limit=0)
        async with aiohttp.ClientSession("http://agent", connector=connector) as api:
            await _listens(api)
            await _asked(api, "POST", "/v1/apps", {"name": "bench", "org_slug": "personal"})
            config = {
                "image": image.pinned,
                "init": {"exec": list(_ARGV)},
                "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": _MEMORY},
                "restart": {"policy": "no"},
            }
            machines: list[str] = []

            async def create() -> None:
                made = await _asked(api, "POST", f"{_APP}/machines", {"config": config})
                machines.append(made["id"])
                await _asked(api, "GET", f"{_APP}/machines/{made['id']}/wait?state=started&timeout=60")

            try:
                begun = time.perf_counter()
                await asyncio.gather(*(create() for _ in range(count)))
                seconds = time.perf_counter() - begun
                execs = [await _asked_true(api, machines[0]) for _ in range(_EXECS)]
                await asyncio.gather(*(_asked(api, "DELETE", f"{_APP}/machines/{one}?force=true") for one in machines[1:]))
                del machines[1:]
                return seconds, execs, await _rested(api, machines[0])
            finally:
                await asyncio.gather(*(_asked(api, "DELETE", f"{_APP}/machines/{one}?force=true") for one in machines))


async def _rested(api: aiohttp.ClientSession, machine: str) -> dict[str, list[float]]:
    """Seconds of a machine's starts, from memory and from nothing, and of its suspends."""
    taken: dict[str, list[float]] = {"suspend": [], "resume": [], "boot": []}
    for _ in range(_ROUNDS):
        taken["suspend"].append(await _turned(api, machine, "suspend", "suspended"))
        taken["resume"].append(await _turned(api, machine, "start", "started"))
        event = (await _asked(api, "GET", f"{_APP}/machines/{machine}"))["events"][0]
        if not event["request"]["resumed"]:
            raise Failed(f"it did not go on from its memory: {event}")
        await _turned(api, machine, "stop", "stopped")
        taken["boot"].append(await _turned(api, machine, "start", "started"))
    return taken


async def _turned(api: aiohttp.ClientSession, machine: str, what: str, state: str) -> float:
    begun = time.perf_counter()
    body = {"signal": "SIGKILL"} if what == "stop" else None
    await _asked(api, "POST", f"{_APP}/machines/{machine}/{what}", body)
    version = (await _asked(api, "GET", f"{_APP}/machines/{machine}"))["instance_id"]
    await _asked(api, "GET", f"{_APP}/machines/{machine}/wait?state={state}&instance_id={version}&timeout=60")
    return time.perf_counter() - begun


async def _asked_true(api: aiohttp.ClientSession, machine: str) -> float:
    begun = time.perf_counter()
    done = await _asked(api, "POST", f"{_APP}/machines/{machine}/exec", {"command": ["true"]})
    if done["exit_code"] != 0:
        raise Failed(f"true ended with {done['exit_code']}")
    return time.perf_counter() - begun


async def _asked(api: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
    async with api.request(method, path, json=body) as answer:
        if answer.status >= 300:
            raise Failed(f"{method} {path}: {answer.status}: {(await answer.text())[:500]}")
        return await answer.json(content_type=None)


async def _listens(api: aiohttp.ClientSession) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            await _asked(api, "GET", "/v1/apps?org_slug=personal")
            return
        except aiohttp.ClientConnectionError:
            if time.monotonic() > deadline:
                raise Failed("the agent does not listen") from None
            await asyncio.sleep(0.05)
