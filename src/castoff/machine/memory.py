"""Whether a machine can have the memory that it asks for: told before an image is fetched for it."""

from __future__ import annotations

import os

from castoff.errors import Invalid
from castoff.machine.settings import LEAST_MEMORY

__all__ = ["check_memory"]


def check_memory(memory: int) -> None:
    """Compares with what boots and what this host has. Guests touch memory bit by bit, so what is free now says little.

    Args:
        memory: Bytes that the guest is to have.

    Raises:
        Invalid: It is too little, or more than the host's own.
    """
    if memory < LEAST_MEMORY:
        raise Invalid(f"a machine with {memory} bytes of memory cannot boot", hint=f"give it {LEAST_MEMORY >> 20}M or more")
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory > host:
        raise Invalid(f"a machine of {memory >> 20} MiB does not fit this host's {host >> 20} MiB", hint="give it less --memory")
