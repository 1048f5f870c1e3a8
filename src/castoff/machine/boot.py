"""From a VMM that was just started to a machine whose command runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from castoff.errors import CastoffError
from castoff.machine.machine import Machine, MachineLost, console_tail, lost
from castoff.machine.model import MachineRecord
from castoff.machine.records import MachineRecords
from castoff.rootfs.context import ProviderContext
from castoff.timeline import step
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestSettings
from castoff.vmm.vmm import VmmHandle

if TYPE_CHECKING:
    from castoff.machine.hydration import Hydration

__all__ = ["boot"]


async def boot(
    record: MachineRecord,
    records: MachineRecords,
    providers: ProviderContext,
    *,
    handle: VmmHandle,
    hydration: Hydration | None,
    timeout: float,
    guest: GuestSettings | None = None,
) -> Machine:
    """The machine of a VMM that was just started, once its command runs (or could not be executed: ``wait`` tells).

    Args:
        record: What is written down of it.
        records: Where.
        providers: Whoever gave it its rootfs is among them.
        handle: Its VMM.
        hydration: How its data comes in, where it was not all here; the machine's to close.
        timeout: Seconds that it may take.
        guest: What it was told to run.

    Raises:
        MachineLost: It ended, or did not get there in time. Ending the VMM is the caller's part.
    """
    with step("machine.boot", machine=record.id) as current:
        try:
            async with asyncio.timeout(timeout):
                channel = await GuestChannel.connect(handle, timeout)
                machine = Machine(
                    record,
                    records=records,
                    providers=providers,
                    handle=handle,
                    channel=channel,
                    hydration=hydration,
                    guest=guest,
                )
                try:
                    ready = await machine.ready()
                except BaseException:
                    await channel.close()
                    raise
        except TimeoutError as error:
            raise MachineLost(
                f"machine {record.id} did not run its command within {timeout:.0f} s", console=console_tail(handle.console)
            ) from error
        except MachineLost:
            raise
        except CastoffError as error:
            raise lost(error, handle) from error
        if ready is not None:
            current.attributes["kernel_ms"] = round(ready.init_seconds * 1000)
            current.attributes["drivers_ms"] = round(ready.driver_seconds * 1000)
            current.attributes["init_ms"] = round((ready.exec_seconds - ready.init_seconds) * 1000)
    return machine
