"""What a machine's rates are: the operator's, its own within the operator's bounds, and never too little to run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from castoff.config import convert
from castoff.errors import Invalid, Unsupported
from castoff.vmm.rates import AskedRates, MostRates, Rates, RateSettings, granted, qemu_limits, token_bucket

limits = some.just(0) | some.integers(64 << 10, 1 << 40)


def test_who_asks_for_nothing_gets_the_operators() -> None:
    """Its default, but never more than the bound; where there is neither, no limit."""
    assert granted(RateSettings(), None, card=False) == Rates()
    settings = RateSettings(disk_bytes=1 << 20, disk_operations=500, most=MostRates(disk_operations=100, network_bytes=1 << 20))
    assert granted(settings, AskedRates(), card=False) == Rates(disk_bytes=1 << 20, disk_operations=100, network_bytes=1 << 20)


@given(usual=limits, most=limits, asked=some.none() | some.integers(0, 1 << 40))
def test_nobody_gets_more_than_the_bound(usual: int, most: int, asked: int | None) -> None:
    """0, no limit, is more than any bound; what is refused is refused with a reason, never changed."""
    settings = RateSettings(disk_bytes=usual, most=MostRates(disk_bytes=most))
    try:
        got = granted(settings, AskedRates(disk_bytes=asked), card=False).disk_bytes
    except Invalid:
        assert asked is not None and ((most and not 0 < asked <= most) or 0 < asked < 64 << 10)
        return
    assert asked is None or got == asked
    assert not most or 0 < got <= most


def test_what_cannot_be_held_to_is_refused() -> None:
    """A limit of the user network; in the configuration, so little that no guest would run."""
    with pytest.raises(Unsupported, match="user network cannot be limited"):
        granted(RateSettings(), AskedRates(network_bytes=1 << 20), card=False)
    assert granted(RateSettings(), AskedRates(network_bytes=1 << 20), card=True).network_bytes == 1 << 20
    for rates in ({"disk_operations": 3}, {"most": {"disk_bytes": 100}}, {"burst_seconds": 0.5}, {"disk_bytes": 1 << 60}):
        with pytest.raises(Invalid, match=r"vmm\.rates"):
            convert({"vmm": {"rates": rates}}, Path("config.toml"))


@given(rate=some.integers(10, 1 << 40), burst=some.floats(1, 3600))
def test_both_monitors_are_told_the_same_rate(rate: int, burst: float) -> None:
    """Firecracker by the time in which its bucket fills, which is whole milliseconds; QEMU by what leaks in a second. QEMU
    refuses a bucket that holds less than leaks from it in a second."""
    bucket = token_bucket(rate, burst)
    assert bucket["size"] / bucket["refill_time"] * 1000 == pytest.approx(rate, rel=0.11 if rate < 20 else 0.06)
    told = qemu_limits(Rates(disk_bytes=rate, burst_seconds=burst))
    assert told["bps-total"] == rate <= told["bps-total-max"] == bucket["size"]
    assert qemu_limits(Rates(network_bytes=rate)) == {}


def test_rates_are_kept_with_the_machine() -> None:
    """As JSON and back."""
    rates = Rates(disk_bytes=1 << 20, burst_seconds=1.5)
    assert msgspec.json.decode(msgspec.json.encode(rates), type=Rates) == rates
