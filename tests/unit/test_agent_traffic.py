"""What a host counts of what it sends: totals, a rate of the last seconds, a bound of names."""

from __future__ import annotations

from castoff.agent.peers.traffic import Traffic


class Clock:
    """Seconds that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rates_are_of_the_last_seconds() -> None:
    """Totals stay, rates fall to nothing, and who got nothing for long is not told of."""
    clock = Clock()
    traffic = Traffic(clock)
    for _ in range(20):  # 1 MB/s for 5 seconds
        traffic.count("one", 250_000)
        clock.now += 0.25
    (name, total, rate), *more = traffic.lately()
    assert (name, total, more) == ("one", 5_000_000, [])
    assert 800_000 <= rate <= 1_100_000
    clock.now += 6
    assert traffic.lately() == [("one", 5_000_000, 0)]
    clock.now += 30
    assert traffic.lately() == []
    traffic.count("one", 5)
    assert traffic.lately() == [("one", 5_000_005, 1)]


def test_names_are_bounded() -> None:
    """Askers say themselves who they are."""
    traffic = Traffic()
    for number in range(6000):
        traffic.count(f"http://{number}", 1)
    told = traffic.lately()
    assert len(told) == 4097
    assert ("others", 6000 - 4096) in [row[:2] for row in told]
