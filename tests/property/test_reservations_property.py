"""Room that was promised: never more than there is, never lost before its time, whatever comes in which order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from castoff.fleet.offers import Offer, Question, ranked
from castoff.fleet.reservations import Capacity, Reservations, Wanted

KINDS = ("", "l40s", "a100")
sizes = st.builds(
    lambda cpus, memory, gpus, kind: Wanted(cpus=cpus, memory_mb=memory, gpus=gpus if kind else 0, gpu_kind=kind),
    st.integers(0, 4),
    st.integers(0, 2048),
    st.integers(0, 2),
    st.sampled_from(KINDS),
)


class Host(RuleBasedStateMachine):
    """A host whose machines come about, end, or never come about, and a clock that somebody else turns."""

    @initialize(cpus=st.integers(0, 16), memory=st.integers(0, 8192), gpus=st.integers(0, 3))
    def begin(self, cpus: int, memory: int, gpus: int) -> None:
        self.now = 0.0
        self.machines: dict[str, Wanted] = {}
        self.total = Capacity(cpus, memory, {"l40s": gpus})
        self.book = Reservations(self.total, lambda: self.machines, clock=lambda: self.now)
        self.promised: dict[str, tuple[Wanted, float]] = {}
        self.taken: dict[str, tuple[str, Wanted, float]] = {}
        self.count = 0

    def expected(self) -> list[Wanted]:
        """What counts by the model: machines, promises that are not over, and what was taken for machines that are to come."""
        open_promises = [wanted for wanted, until in self.promised.values() if until > self.now]
        to_come = [wanted for machine, wanted, until in self.taken.values() if until > self.now and machine not in self.machines]
        return [*self.machines.values(), *open_promises, *to_come]

    def left(self) -> Capacity:
        left = self.total
        for wanted in self.expected():
            left = left.without(wanted)
        return left

    @rule(wanted=sizes, seconds=st.floats(0.1, 10))
    def ask(self, wanted: Wanted, seconds: float) -> None:
        fits = self.left().without(wanted).is_room
        identity = self.book.promise(wanted, seconds)
        assert (identity is not None) == fits
        if identity is not None:
            self.promised[identity] = (wanted, self.now + seconds)

    @precondition(lambda self: self.promised)
    @rule(data=st.data(), seconds=st.floats(0.1, 10))
    def take(self, data: st.DataObject, seconds: float) -> None:
        identity = data.draw(st.sampled_from(sorted(self.promised)))
        wanted, until = self.promised.pop(identity)
        machine = f"m{self.count}"
        self.count += 1
        assert self.book.take(identity, machine, seconds) == (until > self.now)
        if until > self.now:
            assert not self.book.take(identity, "another", seconds)
            self.taken[identity] = (machine, wanted, self.now + seconds)

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.promised)))
        self.book.release(identity)
        del self.promised[identity]

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), comes=st.booleans())
    def come_about(self, data: st.DataObject, comes: bool) -> None:
        identity = data.draw(st.sampled_from(sorted(self.taken)))
        self.book.release(identity)  # too late: it was taken
        machine, wanted, until = self.taken[identity]
        if comes and until > self.now:
            self.machines[machine] = wanted
            del self.taken[identity]
            self.book.free()

    @precondition(lambda self: self.machines)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        del self.machines[data.draw(st.sampled_from(sorted(self.machines)))]

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.promised = {key: value for key, value in self.promised.items() if value[1] > self.now}
        self.taken = {key: value for key, value in self.taken.items() if value[2] > self.now}

    @invariant()
    def never_more_than_there_is(self) -> None:
        if not hasattr(self, "book"):
            return
        free = self.book.free()
        left = self.left()
        assert (free.cpus, free.memory_mb) == (left.cpus, left.memory_mb)
        assert free.is_room
        assert {kind: count for kind, count in free.gpus.items() if count} == {
            kind: count for kind, count in left.gpus.items() if count
        }


TestHost = Host.TestCase
TestHost.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def offer(host: int, **what: object) -> Offer:
    return Offer(host=f"{host:016x}", **{"promise": "0" * 16, "free": 0.5, **what})  # type: ignore[arg-type]


def order(*offers: Offer, question: str = "0" * 16) -> list[int]:
    return [int(found.host, 16) for found in ranked(Question(id=question, image="i"), offers)]


def test_the_image_counts_before_room() -> None:
    """All of it, then most of it, then near to one that has it, then free room."""
    offers = [
        offer(1, free=1.0),
        offer(2, near=1, free=0.9),
        offer(3, near=2, free=0.1),
        offer(4, share=0.5),
        offer(5, share=1.0, free=0.1),
        offer(6, share=1.0, promise=""),
        offer(7, share=1.0, free=0.3),
    ]
    assert order(*offers) == [7, 5, 4, 3, 2, 1]


def test_equal_offers_are_drawn_by_lot() -> None:
    """The same for everybody who asks the same, another for another question."""
    offers = [offer(number) for number in range(8)]
    assert order(*offers) == order(*reversed(offers))
    assert len({order(*offers, question=f"{number:016x}")[0] for number in range(64)}) > 4
