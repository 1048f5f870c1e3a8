"""How a machine is asked to end, and the event that tells how it did."""

from __future__ import annotations

import signal as signals
import time
from typing import Final

from castoff.lifecycle.board import Board
from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.durations import seconds
from castoff.lifecycle.launcher import RunExit
from castoff.lifecycle.model import Event
from castoff.lifecycle.states import State

__all__ = ["exit_event", "stop_manner"]

_GRACE: Final = 5.0
"""Seconds from the stop signal to the kill where the configuration says nothing, as the API documents it."""
_SIGNAL: Final = "SIGINT"


def stop_manner(config: MachineConfig, signal: int | None, timeout: float | None) -> tuple[int, float]:
    """Signal, and seconds until the kill, of a stop: those asked for, or the configuration's.

    Args:
        config: The machine's.
        signal: Asked for; None: the configuration's.
        timeout: Asked for; None and 0: the configuration's (fly-go writes ``"0s"`` where its user said nothing).
    """
    stop = config.stop_config
    if signal is None:
        name = (stop.signal if stop is not None else None) or _SIGNAL
        signal = signals.Signals[name].value if name in signals.Signals.__members__ else signals.SIGINT.value
    if not timeout and stop is not None and stop.timeout is not None:
        timeout = seconds(stop.timeout)
    return signal, timeout or _GRACE


def exit_event(
    board: Board, exit: RunExit, status: State, *, requested: bool, restarting: bool = False, restarts: int = 0
) -> Event:
    """The event of a run's end.

    Args:
        board: Makes events.
        exit: How it ended.
        status: The state that follows.
        requested: Whether a client asked for it.
        restarting: Whether it is started again.
        restarts: How often in a row it was already.
    """
    particulars = {
        "exit_code": exit.code,
        "guest_exit_code": exit.code,
        "guest_signal": exit.signal,
        "signal": exit.signal,
        "oom_killed": exit.out_of_memory,
        "requested_stop": requested,
        "restarting": restarting,
        "exited_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if exit.message:
        particulars["error"] = exit.message
    return board.event("exit", status, request={"exit_event": particulars, "restart_count": restarts})
