"""What follows the end of a machine's command: its restart policy, its auto-destroy, its schedule."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.launcher import RunExit

__all__ = ["SETTLES_AFTER", "back_off", "period", "restarts_after"]

SETTLES_AFTER: Final = 60.0
"""Seconds that a command must have run for its restarts to be counted anew."""
_FIRST: Final = 1.0
_LONGEST: Final = 60.0
_RETRIES: Final = 10
"""Restarts in a row where the policy is ``on-failure`` and says nothing else, as the API documents it."""
_PERIODS: Final = MappingProxyType({"hourly": 3600, "daily": 86400, "weekly": 7 * 86400, "monthly": 30 * 86400})


def restarts_after(config: MachineConfig, exit: RunExit, restarts: int) -> bool:
    """Whether the machine is started again after its command ended by itself.

    Args:
        config: The machine's.
        exit: How it ended.
        restarts: How often in a row it was started again already.
    """
    restart = config.restart
    policy = (restart.policy if restart is not None else None) or ("no" if config.auto_destroy else "on-failure")
    if policy == "always":
        return True
    most = restart.max_retries if restart is not None and restart.max_retries is not None else _RETRIES
    return policy == "on-failure" and exit.code != 0 and restarts < most


def back_off(restarts: int) -> float:
    """Seconds to wait before a restart: none before the first, then doubling."""
    return 0.0 if restarts == 0 else min(_LONGEST, _FIRST * 2.0 ** min(restarts - 1, 10))


def period(config: MachineConfig) -> int | None:
    """Seconds between the starts of a machine with a schedule."""
    return _PERIODS.get(config.schedule or "")
