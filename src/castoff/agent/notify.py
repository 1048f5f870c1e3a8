"""Tells systemd how the agent is (sd_notify(3)): a datagram to the socket that it names. Nothing where it names none."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["notify"]


def notify(state: str) -> None:
    """Sends ``READY=1``, ``STOPPING=1``, ...; systemd that does not listen is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1.0)
        sender.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
