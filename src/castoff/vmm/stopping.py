"""How a machine is asked to end: through its guest's control channel, and by force when that does not help."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from castoff.errors import CastoffError
from castoff.vmm.channel import GuestChannel

if TYPE_CHECKING:
    from castoff.vmm.vmm import VmmHandle

__all__ = ["ask_to_stop"]

_POWER_OFF_SECONDS: Final = 3.0
"""What a guest may take from its command's end to its own."""


async def ask_to_stop(handle: VmmHandle, timeout: float) -> None:
    """Ends a machine: its command gets its stop signal, ``timeout`` seconds later SIGKILL, its monitor SIGKILL after that."""
    try:
        async with asyncio.timeout(timeout + _POWER_OFF_SECONDS):
            try:
                async with await GuestChannel.connect(handle, timeout, control=True) as control:
                    await control.shutdown(timeout)
                    await handle.wait()
            except CastoffError:
                pass  # it hangs, or ends just now: force decides
    except TimeoutError:
        pass
    await handle.kill()
