"""Which of the hosts that have room gets a machine: the one that has its image, or most of it, or is near to one that has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated

import msgspec

from castoff.errors import Invalid
from castoff.fleet.record import HostId
from castoff.fleet.reservations import Wanted

__all__ = ["Offer", "Over", "Question", "promise_id", "ranked", "read_offer", "read_question"]

_Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class Question(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="question"):
    """Who has room for a machine?"""

    id: _Id
    image: Annotated[str, msgspec.Meta(max_length=1024)]
    layers: Annotated[tuple[Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")], ...], msgspec.Meta(max_length=512)] = ()
    """The diffIDs of its layers, as far as whoever asks knows them."""
    wanted: Wanted = Wanted()


class Over(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="over"):
    """A question's end: whoever asked listens no more. It goes the question's own way, so that no host hears it sooner."""

    question: _Id
    heard: Annotated[tuple[HostId, ...], msgspec.Meta(max_length=10_000)] = ()
    """The hosts whose offers came in time; the others' are nobody's."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A host's answer."""

    host: HostId
    promise: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{16})?\Z")] = ""
    """Of the room; empty: it has none."""
    busy: bool = False
    """It has no room now, and would have if what it has promised to others were not taken: worth asking again."""
    share: _Share = 0.0
    """How much of the image it has."""
    near: Annotated[int, msgspec.Meta(ge=0, le=2)] = 0
    """2: a host of its zone has all of it, 1: one of its region."""
    free: _Share = 0.0
    """How much of the host is free: of processors or memory, whichever is less."""


_questions, _offers = msgspec.json.Decoder(Question | Over), msgspec.json.Decoder(Offer)
_MOST_BYTES = 256 << 10


def promise_id(question: str, host: str) -> str:
    """The id of what a host promises for a question: the same however often it hears it."""
    return hashlib.blake2b(f"{question} {host}".encode(), digest_size=8).hexdigest()


def read_question(data: bytes) -> Question | Over:
    """What was asked, or that it is over.

    Raises:
        Invalid: It is no question.
    """
    try:
        if len(data) <= _MOST_BYTES:
            return _questions.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"no question: {error}") from error
    raise Invalid(f"no question: {len(data)} bytes")


def read_offer(data: bytes) -> Offer:
    """What was answered.

    Raises:
        Invalid: It is no offer.
    """
    try:
        if len(data) <= _MOST_BYTES:
            return _offers.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"no offer: {error}") from error
    raise Invalid(f"no offer: {len(data)} bytes")


def ranked(question: Question, offers: Iterable[Offer]) -> list[Offer]:
    """The offers that have room, the best first.

    All of the image, then most of it by tenths, then nearness to it, then free room by tenths, then by lot, which falls the
    same way for whoever draws it.
    """
    return sorted((offer for offer in offers if offer.promise), key=lambda offer: _worth(question, offer))


def _worth(question: Question, offer: Offer) -> tuple[float, ...]:
    lot = hashlib.blake2b(f"{question.id} {offer.host}".encode(), digest_size=8).digest()
    tenths = int(10 * offer.share + 1e-9)
    return (-tenths, 0 if tenths == 10 else -offer.near, -int(10 * offer.free), int.from_bytes(lot, "big"))
