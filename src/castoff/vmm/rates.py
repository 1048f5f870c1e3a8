"""How fast a machine may read, write and send: what the operator gives, what a machine may ask for, what its VMM enforces."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from castoff.errors import Invalid, Unsupported

__all__ = ["AskedRates", "MostRates", "RateSettings", "Rates", "granted", "qemu_limits", "token_bucket"]

_LEAST: Final = {"disk_bytes": 64 << 10, "disk_operations": 10, "network_bytes": 8 << 10}
"""A second, by name: no guest comes to run its command with less."""
_MOST: Final = 1 << 40
"""What both VMMs can count: QEMU up to 10^15 (include/qemu/throttle.h), Firecracker 2^64."""

_Limit = Annotated[int, Meta(ge=0, le=_MOST)]


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a machine has; 0: without limit."""

    disk_bytes: int = 0
    """A second, read and written together."""
    disk_operations: int = 0
    """Requests a second, of both kinds."""
    network_bytes: int = 0
    """A second, in each direction."""
    burst_seconds: float = 1.0
    """How many seconds' worth may come at once after a rest."""


class AskedRates(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine asks for; None: as the operator says."""

    disk_bytes: _Limit | None = None
    disk_operations: _Limit | None = None
    network_bytes: _Limit | None = None


def _check_least(limits: msgspec.Struct) -> None:
    for name, least in _LEAST.items():
        if 0 < getattr(limits, name) < least:
            raise ValueError(f"{name} must be 0, or at least {least}: no guest runs with less")


class MostRates(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The most that a machine can ask for; 0: anything."""

    disk_bytes: _Limit = 0
    """Bytes a second."""
    disk_operations: _Limit = 0
    """Requests a second."""
    network_bytes: _Limit = 0
    """Bytes a second."""

    def __post_init__(self) -> None:
        _check_least(self)


class RateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How fast a machine may be that asks for nothing; 0: without limit, or as ``most`` says."""

    disk_bytes: _Limit = 0
    """Bytes a second that a machine reads and writes, all its drives and volumes together; under Firecracker, which has no limit
    for several, each of them. At least 64 KiB."""
    disk_operations: _Limit = 0
    """Requests a second, likewise; at least 10."""
    network_bytes: _Limit = 0
    """Bytes a second, in each direction; at least 8 KiB. With ``agent.network.mode = bridge``; QEMU's user network cannot be
    limited: there it does not apply."""
    burst_seconds: Annotated[float, Meta(ge=1, le=3600)] = 1.0
    """How many seconds' worth may come at once after a rest."""
    most: MostRates = MostRates()
    """The most that a machine can ask for."""

    def __post_init__(self) -> None:
        _check_least(self)


def granted(settings: RateSettings, asked: AskedRates | None, *, card: bool) -> Rates:
    """What a machine gets.

    Args:
        settings: The operator's.
        asked: The machine's.
        card: Whether it has a card of its own on the host, whose rate can be limited.

    Raises:
        Invalid: It asks for more than it may, or for less than any guest needs.
        Unsupported: It asks for a limit of its network, and there is only the user network, which has none.
    """
    if asked is not None and asked.network_bytes and not card:
        hint = "leave it away, or give machines cards: agent.network.mode = bridge"
        raise Unsupported("rates.network_bytes: QEMU's user network cannot be limited", hint=hint)
    found = {name: _granted(name, settings, asked) for name in _LEAST}
    return Rates(**found, burst_seconds=settings.burst_seconds)


def _granted(name: str, settings: RateSettings, asked: AskedRates | None) -> int:
    most: int = getattr(settings.most, name)
    wanted: int | None = getattr(asked, name) if asked is not None else None
    if wanted is None:
        usual: int = getattr(settings, name)
        return min(usual or most, most or usual)
    if most and not 0 < wanted <= most:
        raise Invalid(f"rates.{name}: {wanted or 'no limit'} is more than this host gives", hint=f"ask for at most {most}")
    if 0 < wanted < _LEAST[name]:
        raise Invalid(f"rates.{name}: no guest runs with {wanted}", hint=f"ask for at least {_LEAST[name]}")
    return wanted


def token_bucket(rate: int, burst_seconds: float) -> dict[str, Any]:
    """Firecracker's form of a rate (its API's TokenBucket): a bucket that is full again after as long as it lasts."""
    return {"size": int(rate * burst_seconds), "refill_time": max(1, int(burst_seconds * 1000))}


def qemu_limits(rates: Rates) -> dict[str, int]:
    """QEMU's form of a machine's disk rates (qapi/block-core.json, ThrottleLimits): what leaks a second, and what the bucket
    holds."""
    limits: dict[str, int] = {}
    for name, rate in (("bps", rates.disk_bytes), ("iops", rates.disk_operations)):
        if rate:
            limits |= {f"{name}-total": rate, f"{name}-total-max": int(rate * rates.burst_seconds)}
    return limits
