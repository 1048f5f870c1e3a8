"""Joins this process to a machine until it ends: input, output, signals, window size."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castoff.cli.loop import signals_to
from castoff.cli.terminal import ESCAPES, output_size, raw, read_input, write_output
from castoff.errors import CastoffError
from castoff.timeline import step

if TYPE_CHECKING:
    from castoff.machine.machine import Machine

__all__ = ["attach", "follow_console"]

_FORWARDED = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_KILLS_AT = 3
"""So many of one ending signal, none later than PATIENCE seconds after the one before, kill the machine."""
_PATIENCE = 5.0
_ESCAPE_TIME = 1.0
_LAST_OUTPUT = 1.0
"""Seconds for which a killed machine's output may still be written."""
_GONE = (errno.EPIPE, errno.EIO)
"""What writing says when whoever read is gone: a pipe's reader, a terminal that hung up."""


class _Escape:
    """Looks for Ctrl-] three times within a second in what is typed."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def met(self, typed: bytes) -> bool:
        for key in typed:
            if key != ESCAPES[0]:
                self._times.clear()
                continue
            now = time.monotonic()
            self._times = [at for at in self._times if now - at < _ESCAPE_TIME] + [now]
            if len(self._times) >= len(ESCAPES):
                return True
        return False


class _Attached:
    """One machine and this process's three descriptors."""

    def __init__(self, machine: Machine, *, interactive: bool, tty: bool) -> None:
        self._machine = machine
        self._interactive = interactive
        self._tty = tty
        self._tasks: set[asyncio.Task[None]] = set()
        self._endings: list[float] = []
        self._killed = asyncio.Event()

    async def run(self) -> int:
        others = (*_FORWARDED, signal.SIGWINCH) if self._tty else _FORWARDED
        terminal = raw(0) if self._interactive and self._tty else contextlib.nullcontext()
        with terminal, signals_to(self._signalled, *others):
            try:
                if self._tty:
                    self._resize()
                if self._interactive:
                    self._spawn(self._pump_input())
                await self._output_ends()
                return await self._machine.wait()
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _output_ends(self) -> None:
        """Until all output is written, or the machine was killed and whoever should read does not: a pager, Ctrl-S."""
        pump, killed = asyncio.ensure_future(self._pump_output()), asyncio.ensure_future(self._killed.wait())
        try:
            await asyncio.wait((pump, killed), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((pump,), timeout=_LAST_OUTPUT)
            if pump.done():
                pump.result()
        finally:
            for task in (pump, killed):
                task.cancel()
            await asyncio.gather(pump, killed, return_exceptions=True)

    async def _kill(self) -> None:
        await self._machine.kill()
        self._killed.set()

    async def _pump_output(self) -> None:
        async for output in self._machine.output():
            try:
                await write_output(output.stream, output.data)
            except OSError as error:
                if error.errno in _GONE:
                    raise BrokenPipeError(errno.EPIPE, "nobody reads the output any more") from error
                raise

    async def _pump_input(self) -> None:
        escape = _Escape()
        async for piece in read_input(0):
            if self._tty and escape.met(piece):
                await self._kill()
                return
            await self._machine.write(piece)
        await self._machine.close_input()

    def _signalled(self, number: int) -> None:
        if number == signal.SIGWINCH:
            self._resize()
            return
        if number in (signal.SIGINT, signal.SIGTERM) and self._insists():
            self._spawn(self._kill())
            return
        self._spawn(self._machine.signal(number))

    def _insists(self) -> bool:
        """Whether the person has asked so often and so fast that the machine must go."""
        now = time.monotonic()
        if self._endings and now - self._endings[-1] > _PATIENCE:
            self._endings.clear()
        self._endings.append(now)
        return len(self._endings) >= _KILLS_AT

    def _resize(self) -> None:
        columns, rows = output_size(1, 0, 2)
        self._spawn(self._machine.resize(columns=columns, rows=rows))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(_while_it_runs(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _while_it_runs(work: Coroutine[Any, Any, None]) -> None:
    """What is sent to a machine that has just ended fails; that it ended, its output's end tells."""
    with contextlib.suppress(CastoffError):
        await work


async def attach(machine: Machine, *, interactive: bool, tty: bool) -> int:
    """Runs until the machine's command ends.

    Returns:
        The command's exit code, 128 + n where signal n ended it.

    Raises:
        BrokenPipeError: Whoever read the output is gone.
        CastoffError: The machine was lost.
    """
    with step("cli.attach", machine=machine.id):
        return await _Attached(machine, interactive=interactive, tty=tty).run()


async def follow_console(path: Path) -> None:
    """Copies the guest kernel's console to stderr as it grows, until cancelled, and then what is left of it."""
    with path.open("rb") as file:
        try:
            while True:
                piece = file.read()
                if piece:
                    await write_output(2, piece)
                else:
                    await asyncio.sleep(0.05)
        finally:
            with contextlib.suppress(OSError):
                sys.stderr.buffer.write(file.read())
                sys.stderr.flush()
