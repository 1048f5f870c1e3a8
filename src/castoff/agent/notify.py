"""Tells systemd how the agent is (sd_notify(3)): a datagram to the socket that it names. Nothing where it names none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

__all__ = ["notify", "watchdog"]


def notify(state: str) -> None:
    """Sends ``READY=1``, ``STOPPING=1``, ...; systemd that does not listen is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1.0)
        sender.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


async def watchdog() -> None:
    """Tells systemd that the event loop goes round, twice in the time after which it would take the agent for hung
    (sd_watchdog_enabled(3)); returns where it does not want to know."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    text = os.environ.get("WATCHDOG_USEC", "")
    if not text.isdecimal() or int(text) == 0:
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(text) / 2e6)
