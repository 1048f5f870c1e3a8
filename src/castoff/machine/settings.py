"""Settings of machines: what one gets that asks for nothing."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["LEAST_MEMORY", "MachineSettings"]

LEAST_MEMORY = 32 << 20
"""Bytes: no kernel that castoff knows unpacks itself into less."""


class MachineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a machine gets that asks for nothing, and how long it is waited for."""

    cpus: Annotated[int, msgspec.Meta(ge=1, le=255)] = 1
    """Virtual CPUs."""
    memory: Annotated[int, msgspec.Meta(ge=LEAST_MEMORY)] = 512 << 20
    """Bytes of guest memory."""
    network: Literal["user", "none"] = "user"
    """``user``: outgoing connections and published ports through the VMM's user-mode network. ``none``: no network card."""
    boot_timeout: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    """Seconds from the VMM's start to the guest's word that its command runs; emulated processors are slow, so it is long."""
