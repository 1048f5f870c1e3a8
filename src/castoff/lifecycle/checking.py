"""Asks machines' checks as long as they run, and keeps what they answer.

A probe costs no commit: what is found is in memory, and found again after the agent's next start. Only a change of status is
written down, as an event, and not more often than every half minute for each check. Nothing that a check finds ends a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from castoff.errors import CastoffError, Conflict, NotFound
from castoff.lifecycle.board import Board
from castoff.lifecycle.checks import CRITICAL, PASSING, WARNING, MachineCheck, check_statuses, machine_checks
from castoff.lifecycle.ids import milliseconds
from castoff.lifecycle.launcher import Reachable, Run
from castoff.lifecycle.model import CHECK_EVENT, CheckStatus, Machine
from castoff.lifecycle.states import State

__all__ = ["Checking", "Probed"]

Probed = Callable[[bool, bool, float], None]
"""Told of every probe: whether it was HTTP, whether it passed, and its seconds."""

_AT_ONCE: Final = 256
"""Probes under way on this host; one that hangs holds up others only beyond that."""
_FIRST: Final = 0.5
"""Seconds within which a machine that has just started is asked first. The pauses after that are each twice as long as the one
before, until they are the interval: whoever waits for a machine waits for that."""
_TOLD_AGAIN: Final = 30_000
_REWORDED: Final = 5_000
"""Milliseconds after which it is told that a check's status is still the same, and that its words have changed."""
_EVENTS_APART: Final = 30.0
_LONGEST_OUTPUT: Final = 512


class Checking:
    """Of one agent.

    Args:
        board: Where machines are.
        notice: Told of what nobody asked for and somebody should know.
        probed: Told of every probe.
    """

    def __init__(self, board: Board, notice: Callable[[str], None], probed: Probed) -> None:
        self._board = board
        self._notice = notice
        self._probed = probed
        self._free = asyncio.Semaphore(_AT_ONCE)

    @contextlib.asynccontextmanager
    async def beside(self, machine: Machine, run: Run) -> AsyncIterator[None]:
        """Asks a machine's checks for the block, in which it runs."""
        tasks = []
        if isinstance(run, Reachable):
            try:
                checks = machine_checks(machine.config)
            except CastoffError as error:  # an older castoff took it
                self._notice(f"machine {machine.id} is not checked: {error}")
                checks = ()
            tasks = [asyncio.create_task(_Watch(self, machine, run, check).go_on()) for check in checks]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, run: Reachable, check: MachineCheck) -> str:
        """Probes once, when it is its turn; what was answered.

        Raises:
            CastoffError: Not what it should be.
            TimeoutError: Nothing.
        """
        async with self._free:
            began, passed = time.monotonic(), False
            try:
                async with asyncio.timeout(check.timeout):
                    answer = await run.probe(check.probe)
                passed = True
                return answer
            finally:
                self._probed(check.probe.http, passed, time.monotonic() - began)

    async def keep(self, machine: Machine, found: CheckStatus, *, event: bool) -> None:
        """Keeps what a check has found, as long as that version of its machine runs.

        Args:
            machine: As it was when it was asked.
            found: That.
            event: Whether it is to be an event, too.
        """

        def statuses(now: Machine) -> tuple[CheckStatus, ...]:
            return tuple(found if status.name == found.name else status for status in check_statuses(now))

        def changed(now: Machine) -> dict[str, object]:
            if now.state != State.STARTED or now.version != machine.version:
                raise Conflict(f"machine {now.id} is not what was asked any more")
            return {"checks": statuses(now)}

        with contextlib.suppress(NotFound):
            if event:
                told = {"check": {"name": found.name, "status": found.status, "output": found.output}}
                with contextlib.suppress(CastoffError):  # without a disk it is in memory all the same
                    await self._board.change(machine.id, changed, self._board.event(CHECK_EVENT, found.status, request=told))
            now = self._board.get(None, machine.id)
            if now.state == State.STARTED and now.version == machine.version and found not in now.checks:
                self._board.note(machine.id, statuses(now))

    def trouble(self, machine: Machine, check: MachineCheck, error: BaseException) -> None:
        """Tells of what must not happen."""
        self._notice(f"machine {machine.id}: check {check.name} cannot be asked: {error!r}")


class _Watch:
    """One check of one run."""

    def __init__(self, checking: Checking, machine: Machine, run: Reachable, check: MachineCheck) -> None:
        self._checking = checking
        self._machine = machine
        self._run = run
        self._check = check
        self._grace_ends = time.time() + check.grace if not machine.started else machine.started / 1000 + check.grace
        self._told = float("-inf")
        self._event = ""
        self._last: CheckStatus | None = None

    async def go_on(self) -> None:
        """Asks for ever."""
        soon = min(_FIRST, self._check.interval)
        await asyncio.sleep(random.random() * soon)  # those that start at once are not all asked at once
        while True:
            status, output = await self._ask()
            if status == PASSING:
                self._run.ready()
            await self._keep(status, output)
            soon = self._check.interval if status == PASSING else min(2 * soon, self._check.interval)
            await asyncio.sleep(soon)

    async def _ask(self) -> tuple[str, str]:
        try:
            return PASSING, (await self._checking.ask(self._run, self._check))[:_LONGEST_OUTPUT]
        except TimeoutError:
            output = f"no answer within {self._check.timeout:g} s"
        except CastoffError as error:
            output = error.what[:_LONGEST_OUTPUT]
        except Exception as error:  # whatever it is, the next check is asked, and the machine runs on
            self._checking.trouble(self._machine, self._check, error)
            output = "it could not be asked"
        in_grace = time.time() < self._grace_ends and (self._last is None or self._last.status == WARNING)
        return WARNING if in_grace else CRITICAL, output

    async def _keep(self, status: str, output: str) -> None:
        now, last = milliseconds(), self._last
        if (
            last is not None
            and last.status == status
            and (now - last.updated < (_TOLD_AGAIN if last.output == output else _REWORDED))
        ):
            return
        found = CheckStatus(name=self._check.name, status=status, output=output, updated=now)
        worth = status != self._event and (status != WARNING or self._event != "")
        event = worth and time.monotonic() - self._told >= _EVENTS_APART
        if event:
            self._told, self._event = time.monotonic(), status
        self._last = found
        await self._checking.keep(self._machine, found, event=event)
