"""What every launcher promises, as a function that an adapter's tests call.

    await check_launcher(opened, stays=parse_config(...), ends=parse_config(...), missing="registry/no/such")

It boots five machines and raises AssertionError with what was found. pytest is not needed.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final

from castoff.errors import CastoffError
from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.launcher import Keeping, Launch, Launcher, Remembering, Resumed, RunExit, Suspendable
from castoff.machine.model import new_machine_id

__all__ = ["ENDS_WITH", "check_launcher"]

ENDS_WITH: Final = 7
"""The exit code of the command that ends by itself."""
_SECONDS: Final = 60.0

Opened = Callable[[], AbstractAsyncContextManager[Launcher]]
"""Opens a launcher; a second one over the same machines after the first is closed."""


async def check_launcher(opened: Opened, *, stays: MachineConfig, ends: MachineConfig, missing: str) -> None:
    """Runs all of it.

    Args:
        opened: Opens the launcher under test.
        stays: A machine whose command runs until it gets SIGTERM, which ends it.
        ends: One whose command ends at once with :data:`ENDS_WITH`.
        missing: An image that there is not.
    """
    await _check_images(opened, stays, missing)
    await _check_end(opened, ends)
    await _check_outliving(opened, stays)
    await _check_suspension(opened, stays)
    await _check_discard(opened, stays)


def _launch(config: MachineConfig) -> Launch:
    return Launch(machine=new_machine_id(), name="conform", app="conform", version="01CONFORM", config=config)


async def _check_images(opened: Opened, stays: MachineConfig, missing: str) -> None:
    """An image has a digest; one that is missing is told, and leaves nothing."""
    async with opened() as launcher:
        digest = await launcher.resolve(stays.image)
        assert digest.startswith("sha256:"), f"the image's digest is {digest!r}"
        before = set(await launcher.machines())
        for attempt in (launcher.resolve(missing), launcher.launch(_launch(MachineConfig(image=missing)))):
            try:
                await attempt
            except CastoffError:
                continue
            raise AssertionError("an image that is missing was found")
        assert set(await launcher.machines()) == before, "a launch that failed left something"


async def _check_end(opened: Opened, ends: MachineConfig) -> None:
    """The command's end is told to all who wait, and the machine does not run any more; it can be launched again."""
    launch = _launch(ends)
    async with opened() as launcher:
        for fresh in (True, False):
            run = await launcher.launch(replace(launch, fresh=fresh))
            exits = await asyncio.wait_for(asyncio.gather(run.wait(), run.wait()), _SECONDS)
            assert set(exits) == {RunExit(code=ENDS_WITH)}, f"the command ended with {exits}"
            assert await launcher.reattach(launch) is None, "a machine that has ended is found again"
            if isinstance(launcher, Remembering):
                assert await launcher.last_exit(launch.machine) == exits[0], "its exit is not remembered"
            await run.kill()  # does nothing, and says nothing
        await launcher.discard(launch.machine)


async def _check_outliving(opened: Opened, stays: MachineConfig) -> None:
    """A machine outlives its launcher; the next one takes it up and stops it."""
    launch = _launch(stays)
    async with opened() as launcher:
        assert await launcher.reattach(launch) is None, "a machine that was never launched is found"
        await (await launcher.launch(launch)).detach()
    async with opened() as launcher:
        assert launch.machine in await launcher.machines(), "the machine was forgotten"
        run = await launcher.reattach(launch)
        assert run is not None, "the machine is not found again"
        await asyncio.wait_for(run.stop(signal.SIGTERM, _SECONDS), _SECONDS)
        exit = await asyncio.wait_for(run.wait(), _SECONDS)
        assert exit == RunExit(code=128 + signal.SIGTERM, signal=signal.SIGTERM), f"it was stopped, and ended with {exit}"
        await launcher.discard(launch.machine)


async def _check_suspension(opened: Opened, stays: MachineConfig) -> None:
    """Where a launcher keeps memory: what was suspended goes on, under another launcher, too; what was dropped is gone."""
    launch = _launch(stays)
    async with opened() as launcher:
        if not isinstance(launcher, Keeping):
            return
        run = await launcher.launch(launch)
        assert not await launcher.keeps(launch.machine), "memory of a machine that runs is kept"
        assert isinstance(run, Suspendable), "a launcher that keeps memory boots what cannot be suspended"
        run.check_suspend()
        await run.suspend()
        assert (await asyncio.wait_for(run.wait(), _SECONDS)).code == -1, "a suspended machine's command has ended"
    async with opened() as launcher:
        assert isinstance(launcher, Keeping)
        assert await launcher.reattach(launch) is None, "a suspended machine runs"
        assert await launcher.keeps(launch.machine), "its memory is not kept"
        again = await launcher.launch(replace(launch, fresh=False, resume=True))
        assert isinstance(again, Resumed) and isinstance(again, Suspendable)
        assert not again.began_cold, f"it did not go on: {again.began_cold}"
        assert not await launcher.keeps(launch.machine), "its memory is kept though it goes on"
        await again.suspend()
        await launcher.forget(launch.machine)
        assert not await launcher.keeps(launch.machine), "its memory was dropped, and is kept"
        assert await launcher.reattach(launch) is None, "it runs though its memory was dropped"
        await launcher.forget(launch.machine)
        await launcher.discard(launch.machine)
        assert launch.machine not in await launcher.machines(), "something of it is left"


async def _check_discard(opened: Opened, stays: MachineConfig) -> None:
    """A machine that runs ends when it is discarded, and nothing of it stays; once more does no harm."""
    launch = _launch(stays)
    async with opened() as launcher:
        run = await launcher.launch(launch)
        await launcher.discard(launch.machine)
        exit = await asyncio.wait_for(run.wait(), _SECONDS)
        assert exit.code != 0, f"it was killed, and ended with {exit}"
        assert launch.machine not in await launcher.machines(), "it is still there"
        assert await launcher.reattach(launch) is None, "it is found again"
        await launcher.discard(launch.machine)
