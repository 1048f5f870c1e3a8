"""What becomes due with machines though nobody asks: schedules, what could not be done before, what is destroyed for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from castoff.errors import CastoffError
from castoff.lifecycle.board import Board
from castoff.lifecycle.ids import milliseconds
from castoff.lifecycle.model import Machine
from castoff.lifecycle.restarts import period
from castoff.lifecycle.states import State
from castoff.lifecycle.supervisor import Supervisor

__all__ = ["keep_up"]

_EVERY: Final = 30.0
"""Seconds between looks."""
_REMEMBERED: Final = 24 * 3600 * 1000
"""Milliseconds for which a destroyed machine can be listed."""
_MOST_REMEMBERED: Final = 1000
"""Destroyed machines that can be listed: a host that makes one a second would else hold a hundred thousand."""


async def keep_up(board: Board, supervisors: dict[str, Supervisor], notice: Callable[[str], None]) -> None:
    """Does what is due, for ever.

    Args:
        board: All machines.
        supervisors: Theirs; those of machines that are forgotten are taken out.
        notice: Called with a line for people about what cannot be done.
    """
    while True:
        now = milliseconds()
        for machine in board:
            try:
                await _look_after(machine, supervisors, now)
            except CastoffError as error:
                notice(f"machine {machine.id}: {error}")
        try:
            await _forget(board, supervisors, now)
        except CastoffError as error:
            notice(f"machines destroyed long ago are still listed: {error}")
        await asyncio.sleep(_EVERY)


async def _look_after(machine: Machine, supervisors: dict[str, Supervisor], now: int) -> None:
    if machine.state == State.DESTROYED:
        return
    supervisor = supervisors[machine.id]
    await supervisor.look_after()
    every = period(machine.config)
    if every is not None and machine.state == State.STOPPED and now - machine.started >= every * 1000:
        await supervisor.start()


async def _forget(board: Board, supervisors: dict[str, Supervisor], now: int) -> None:
    """Drops what was destroyed long ago, or before many others."""
    destroyed = [machine for machine in board if machine.state == State.DESTROYED]
    destroyed.sort(key=lambda machine: machine.updated, reverse=True)
    kept = sum(now - machine.updated <= _REMEMBERED for machine in destroyed[:_MOST_REMEMBERED])
    for machine in destroyed[kept:]:
        await board.forget(machine)
        await supervisors.pop(machine.id).close()
