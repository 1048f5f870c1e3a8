"""What every VMM driver promises, as a function that an adapter's tests call.

    await check_vmm(MyVmm(...), specify)

It boots three machines and raises AssertionError with what was found. pytest is not needed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable

from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_session import Exit, Output, Ready
from castoff.vmm.vmm import MachineSpec, Vmm

__all__ = ["check_vmm"]

_BOOT_SECONDS = 60.0

Specify = Callable[[str, GuestSettings], MachineSpec]
"""The specification of a machine of that id, which runs that; its directory and drives are new. Its root filesystem must
have a /bin/sh with ``sleep``."""


async def check_vmm(vmm: Vmm, specify: Specify) -> None:
    """Runs all of it.

    Args:
        vmm: The driver under test.
        specify: Makes specifications.
    """
    await _check_life(vmm, specify)
    await _check_stop(vmm, specify)
    await _check_kill(vmm, specify)


async def _check_life(vmm: Vmm, specify: Specify) -> None:
    """A machine runs its command, tells all of it, and is gone when the command is."""
    script = "echo out; echo err >&2; exit 7"
    handle = await vmm.start(specify("conform-life", GuestSettings(argv=("/bin/sh", "-c", script))))
    try:
        async with await GuestChannel.connect(handle, _BOOT_SECONDS) as channel:
            events = [event async for event in channel.events()]
            said = {stream: b"".join(e.data for e in events if isinstance(e, Output) and e.stream == stream) for stream in (1, 2)}
            assert said == {1: b"out\n", 2: b"err\n"}, f"the command said {said}"
            assert isinstance(events[0], Ready), f"the first event is {events[0]}"
            assert events[-1] == Exit(7, 0, False, ""), f"the last event is {events[-1]}"
            status = await asyncio.wait_for(handle.wait(), 15)
        assert status == 0, f"the monitor ended with {status} after its guest powered off"
        assert await vmm.reattach(handle.state()) is None, "a monitor that has ended is found again"
        assert handle.console.exists(), "there is no console log"
    finally:
        await handle.kill()


async def _check_stop(vmm: Vmm, specify: Specify) -> None:
    """A machine is found again by what JSON kept of it, serves two clients, and ends when it is asked to."""
    script = "trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    started = await vmm.start(specify("conform-stop", GuestSettings(argv=("/bin/sh", "-c", script))))
    try:
        handle = await vmm.reattach(json.loads(json.dumps(started.state())))
        assert handle is not None, "a running monitor is not found again"
        assert handle.pid == started.pid
        async with await GuestChannel.connect(handle, _BOOT_SECONDS) as channel:
            events = channel.events()
            said = b""
            while b"up" not in said:
                event = await anext(events)
                said += event.data if isinstance(event, Output) else b""
            stopping = asyncio.create_task(handle.stop(10))
            rest = [event async for event in events]
            assert rest[-1] == Exit(3, 0, False, ""), f"the command that was asked to end: {rest}"
            await stopping
        assert await asyncio.wait_for(started.wait(), 5) == 0
    finally:
        await started.kill()


async def _check_kill(vmm: Vmm, specify: Specify) -> None:
    """A machine that does not listen is killed in time; killing is idempotent."""
    script = "trap '' TERM; while :; do sleep 1; done"
    handle = await vmm.start(specify("conform-kill", GuestSettings(argv=("/bin/sh", "-c", script))))
    try:
        async with await GuestChannel.connect(handle, _BOOT_SECONDS) as channel:
            assert isinstance(await anext(channel.events()), Ready)
            await asyncio.wait_for(handle.stop(0.5), 15)
        assert not _is_alive(handle.pid), "stop came back and the monitor runs"
        await handle.kill()
        await handle.kill()
    finally:
        await handle.kill()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
