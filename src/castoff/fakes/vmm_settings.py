"""What a stand-in for a VMM reads of a machine's guest settings (docs/formats.md)."""

from __future__ import annotations

import mmap
import os
import signal
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Command", "parse_settings", "read_settings"]

_STDIN: Final = 2
_LISTING: Final = 4
_DIAL: Final = 8


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, as the settings' records tell it."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    stdin: bool
    stop_signal: int
    linger: float
    listing: bool = False
    dials: bool = False


def parse_settings(data: bytes) -> Command:
    """Guest settings (docs/formats.md) into what a stand-in heeds of them.

    Raises:
        ValueError: They are broken.
    """
    argv: list[str] = []
    env: dict[str, str] = {}
    cwd, flags, stop, linger = "/", 0, int(signal.SIGTERM), 10_000
    at = 0
    while at < len(data):
        tag, length = struct.unpack_from("<BI", data, at) if len(data) - at >= 6 else (0, 0)
        value = data[at + 5 : at + 5 + length]
        at += 6 + length
        if not tag or at > len(data):
            raise ValueError("broken settings")
        if tag == 1:
            argv.append(os.fsdecode(value))
        elif tag == 2:
            name, _, text = os.fsdecode(value).partition("=")
            env[name] = text
        elif tag == 3:
            cwd = os.fsdecode(value)
        elif tag == 6:
            flags = int.from_bytes(value, "little")
        elif tag == 10:
            stop = int.from_bytes(value, "little")
        elif tag == 11:
            linger = int.from_bytes(value, "little")
    if not argv:
        raise ValueError("broken settings")
    listing, dials = bool(flags & _LISTING), bool(flags & _DIAL)
    return Command(tuple(argv), env, cwd, bool(flags & _STDIN), stop, linger / 1000, listing, dials)


def read_settings(initramfs: Path) -> Command:
    """The settings in a machine's initramfs: the last member of its last archive (castoff.vmm.initramfs).

    Raises:
        ValueError: There are none.
        OSError: It cannot be read.
    """
    name = b"castoff/settings\0"
    with initramfs.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.rfind(name)
        if at < 110 or data[at - 110 : at - 104] != b"070701":
            raise ValueError(f"{initramfs} holds no settings")
        size, start = int(data[at - 110 + 54 : at - 110 + 62], 16), at - 110 + -(-(110 + len(name)) // 4) * 4
        return parse_settings(data[start : start + size])
