"""The one port of a stand-in for a machine (castoff.fakes.vmm_guest), whose command is ``serve PORT FILE``.

It is no port of this host's: a stand-in has no network, and whoever is connected to it is so through the guest channel. Each
request that ends with an empty line is answered with what FILE, of this host, holds then; where there is no FILE, nobody listens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

__all__ = ["answer", "refusal"]

_LONGEST = 128 * 1024
"""Bytes of an answer: it waits for the host in a stream's window."""


def refusal(dialled: str, command: Sequence[str]) -> str:
    """Why nobody can be connected to port ``dialled`` of a machine that runs ``command``; empty: somebody can."""
    match command:
        case ["serve", port, file] if port == dialled and os.path.exists(file):  # noqa: PTH110 - no Path a connection
            return ""
    return f"connect to port {dialled}: Connection refused"


def answer(said: bytearray, command: Sequence[str]) -> bytes | None:
    """What the server says to ``said``; None: it waits for the rest."""
    if b"\r\n\r\n" not in said:
        return None
    with suppress(OSError), open(command[2], "rb") as file:  # noqa: PTH123
        return file.read(_LONGEST)
    return b""
