"""The one connection to a guest's control channel that all commands of a run, and connections to its ports, share.

The channel serves a client at a time: QEMU's socket lets a second one wait, over vsock it ends the first, and a new client's
hello ends what its predecessor executed (docs/formats.md). Sessions are what it multiplexes, so there is one client.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from castoff.errors import CastoffError
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_dial import GuestConnection, dialling
from castoff.vmm.guest_session import GuestSession
from castoff.vmm.vmm import VmmHandle

__all__ = ["Control"]

T = TypeVar("T")

_CONNECT: Final = 10.0
"""Seconds in which a guest answers."""
_COMMANDS: Final = 16
_PROBES: Final = 8
_FORWARDS: Final = 32
"""Sessions at once of each kind, so that none holds up another; more wait. The guest's init has 64 in all."""
_DIES: Final = 10.0
"""Seconds in which a killed command's end is told."""
_KILL: Final = 9


class Control:
    """Made with the run; connects when it is first needed.

    Args:
        handle: The machine's VMM.
    """

    def __init__(self, handle: VmmHandle) -> None:
        self._handle = handle
        self._channel: GuestChannel | None = None
        self._connecting = asyncio.Lock()
        self._commands = asyncio.Semaphore(_COMMANDS)
        self._probes = asyncio.Semaphore(_PROBES)
        self._forwards = asyncio.Semaphore(_FORWARDS)
        self._abandoned: set[asyncio.Task[None]] = set()

    async def execute(self, settings: GuestSettings, take: Callable[[GuestSession], Awaitable[T]]) -> T:
        """Executes a command; what ``take`` makes of it. Where that fails or is cancelled, the command is killed.

        Raises:
            Invalid: No process can be given these settings.
            Unavailable: The machine ended.
        """
        return await self._converse(self._commands, settings, take)

    async def dial(self, port: int, use: Callable[[GuestConnection], Awaitable[T]], *, probe: bool = False) -> T:
        """Connects to a port of the guest; what ``use`` makes of the connection, which ends with it.

        Args:
            port: Which TCP port.
            use: Does what is to be done.
            probe: It is short: others than long connections are waited for.

        Raises:
            Invalid: There is no such port.
            Unavailable: Nobody listens there, or the machine ended.
            Unsupported: The guest's init is of an older castoff.
        """

        async def take(session: GuestSession) -> T:
            return await use(await GuestConnection.open(session))

        return await self._converse(self._probes if probe else self._forwards, dialling(port), take)

    async def _converse(
        self, free: asyncio.Semaphore, settings: GuestSettings, take: Callable[[GuestSession], Awaitable[T]]
    ) -> T:
        """A session, which has ended, or ends behind, when this returns."""
        await free.acquire()
        starting = asyncio.create_task(self._start(settings))
        try:
            # Not broken off halfway: the guest would keep a session of which half the settings came.
            return await take(await asyncio.shield(starting))
        finally:
            if starting.done() and not starting.cancelled() and starting.exception() is None and starting.result().exit:
                free.release()
            else:
                ending = asyncio.create_task(self._abandon(starting, free))
                self._abandoned.add(ending)
                ending.add_done_callback(self._abandoned.discard)

    async def shutdown(self) -> None:
        """Asks the guest to end its command by force, and to power off.

        Raises:
            Unavailable: The machine ended.
        """
        await (await self._connected()).shutdown(0)

    async def close(self) -> None:
        """Lets go of the channel; what is executed ends when the next client comes. Idempotent."""
        for task in (ending := list(self._abandoned)):
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        async with self._connecting:
            channel, self._channel = self._channel, None
            if channel is not None:
                await channel.close()

    async def _connected(self) -> GuestChannel:
        async with self._connecting:
            if self._channel is not None:
                with contextlib.suppress(CastoffError):
                    self._channel.check()
                    return self._channel
                await self._channel.close()
                self._channel = None
            self._channel = await GuestChannel.connect(self._handle, _CONNECT, control=True)
            return self._channel

    async def _start(self, settings: GuestSettings) -> GuestSession:
        return await (await self._connected()).execute(settings)

    async def _abandon(self, starting: asyncio.Task[GuestSession], free: asyncio.Semaphore) -> None:
        """Kills a command that nobody waits for, and takes what it still says: it would hold up the others' output."""
        try:
            async with asyncio.timeout(_DIES):
                session = await starting
                await session.signal(_KILL)
                async for _ in session.events():
                    pass
        except CastoffError:
            pass  # the machine ended, or the command had never begun
        except TimeoutError:
            if self._channel is not None:
                await self._channel.close()  # the next one's hello ends it
        finally:
            free.release()
