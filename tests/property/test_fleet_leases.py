"""Leases: whatever the network and the clocks do, no two hosts hold one at the same time, and one that is left is taken again."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castoff.fleet.lease import Cell, Claim, Lease, LeaseState

_TTL = 10.0
_HOSTS = 4


class Fleet:
    """Hosts whose clocks began at different times, one cell, and a network that delays, loses and reorders. Time is made up."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.cell: Cell | None = None
        self.revision = 0
        self.claims = [Claim(f"host-{n}", f"{n}-0", _TTL) for n in range(_HOSTS)]
        self.coming: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.holders: list[str] = []
        """Who held it, one after another."""

    def clock(self, n: int) -> float:
        return self.now + 777.7 * n

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.coming, (self.now + seconds, self.count, what))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.coming and self.coming[0][0] <= end:
            self.now, _, what = heapq.heappop(self.coming)
            what()
            self.check()
        self.now = end

    def delay(self) -> float:
        """Seconds that a message is under way."""
        return self.random.choice([0.0, 0.01, 0.01, 0.1, 0.1, 1.0, 4.0, 9.0, 15.0])

    def lives(self, n: int) -> None:
        """A host looks, and takes, renews or gives back; what it read is old when it acts. Or it is started again."""
        claim, found, dice = self.claims[n], self.cell, self.random.random()
        if claim.is_held(self.clock(n)) and dice < 0.1:
            claim.lost()
            self.send(n, claim, claim.revision, LeaseState.FREE)
        elif claim.is_held(self.clock(n)):
            self.send(n, claim, claim.revision, LeaseState.HELD)
        else:
            self.after(self.delay(), lambda: self.acts(n, claim, found))
        if dice > 0.98:
            self.claims[n] = Claim(f"host-{n}", f"{n}-{self.count}", _TTL)
        self.after(self.random.choice([0.5, 3.0, 3.0, 3.0, 11.0]), lambda: self.lives(n))

    def acts(self, n: int, claim: Claim, found: Cell | None) -> None:
        revision = claim.may_follow(found, self.clock(n))
        if revision is not None and claim is self.claims[n] and not claim.is_held(self.clock(n)):
            self.send(n, claim, revision, LeaseState.HELD)

    def send(self, n: int, claim: Claim, revision: int, state: LeaseState) -> None:
        value = msgspec.json.encode(Lease(holder=claim.holder, run=claim.run, state=state))
        sent_at = self.clock(n)

        def arrive() -> None:
            counts = (self.cell.revision if self.cell else 0) == revision
            if counts:
                self.revision += 1
                self.cell = Cell(value, self.revision)
            mine = self.revision
            if state is LeaseState.HELD and self.random.random() > 0.1:
                self.after(self.delay(), lambda: claim.written(mine, sent_at) if counts else claim.lost())

        if self.random.random() > 0.1:
            self.after(self.delay(), arrive)

    def check(self) -> None:
        holding = [claim.holder for n, claim in enumerate(self.claims) if claim.is_held(self.clock(n))]
        assert len(holding) <= 1, holding
        if holding and holding != self.holders[-1:]:
            self.holders += holding


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_no_two_hosts_hold_a_lease(seed: int) -> None:
    """Four hosts for two hours; and it goes from hand to hand all that time, so this says something."""
    fleet = Fleet(seed)
    for n in range(_HOSTS):
        fleet.lives(n)
    fleet.run(7200)
    assert len(fleet.holders) > 20


@given(st.integers(0, 2**32), st.floats(0, 500))
@settings(max_examples=30, deadline=None)
def test_a_lease_that_is_left_is_taken(seed: int, seconds: float) -> None:
    """When all others are silent, a host that looks on holds it soon after it has seen nothing new for the lease's length."""
    fleet = Fleet(seed)
    for n in range(_HOSTS):
        fleet.lives(n)
    fleet.run(seconds)
    fleet.coming.clear()
    claim = Claim("another", "1", _TTL)
    fleet.claims = [claim]
    end = fleet.now + _TTL + 1
    while not claim.is_held(fleet.clock(0)):
        assert fleet.now <= end
        revision = claim.may_follow(fleet.cell, fleet.clock(0))
        if revision is not None:
            fleet.revision += 1
            claim.written(fleet.revision, fleet.clock(0))
        fleet.now += 0.5


@pytest.mark.parametrize(
    "value", [b"", b"{}", b"\xff", b"[" * 5000, b'{"holder":1,"run":"x"}', b'{"holder":"h","run":"r","state":"?"}']
)
def test_rubbish_in_its_place_is_nobody_s(value: bytes) -> None:
    assert Claim("host", "run", _TTL).may_follow(Cell(value, 7), 0.0) == 7


@pytest.mark.parametrize("state", [LeaseState.DONE, LeaseState.FAILED])
def test_what_ended_is_taken_by_nobody(state: LeaseState) -> None:
    claim = Claim("host", "run", _TTL)
    cell = Cell(msgspec.json.encode(Lease(holder="other", run="x", state=state)), 7)
    assert [claim.may_follow(cell, now) for now in (0.0, 100.0)] == [None, None]
