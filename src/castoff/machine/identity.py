"""Who made a thing: a process, named so that a later one with the same pid is not taken for it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from castoff.errors import Invalid

__all__ = ["Owner"]

_TEXT = re.compile(r"(\d{1,10})-(\d{1,20})-([0-9a-f]{8})\Z")


class Owner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A process of one boot of this host: pids come again, pid and start time together do not before the next boot."""

    pid: int
    started: int
    """Clock ticks from boot to the process's start (field 22 of /proc/PID/stat, proc(5))."""
    boot: str
    """First 8 digits of the kernel's boot id."""

    @classmethod
    def this(cls) -> Owner:
        """The calling process."""
        return cls(os.getpid(), _start_of(os.getpid()) or 0, _boot())

    @classmethod
    def parse(cls, text: str) -> Owner:
        """Reads what ``str`` wrote.

        Raises:
            Invalid: It is something else.
        """
        match = _TEXT.match(text)
        if match is None:
            raise Invalid(f"{text[:60]!r} names no process")
        return cls(int(match[1]), int(match[2]), match[3])

    def alive(self) -> bool:
        """Whether the process still runs; a zombie does not, all it had is gone."""
        return self.boot == _boot() and self.started == _start_of(self.pid)

    def __str__(self) -> str:
        return f"{self.pid}-{self.started}-{self.boot}"


def _start_of(pid: int) -> int | None:
    """Start time of a living process in clock ticks after boot; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses itself; state is the first field behind the last one.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
