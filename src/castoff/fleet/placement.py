"""Asking all hosts of a region who has room for a machine, and answering.

An offer is a promise of room for a few seconds. Whoever asked takes the best offer and releases the others; what is not released,
because a host or NATS died meanwhile, ends by its time. Nobody decides for all, and nobody waits for the slowest: an offer of a
host that has all of the image ends the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

import msgspec

from castoff.errors import CastoffError, Invalid, Unavailable
from castoff.fleet.connection import Connection
from castoff.fleet.members import Members
from castoff.fleet.offers import Offer, Over, Question, promise_id, ranked, read_offer, read_question
from castoff.fleet.reservations import Capacity, Reservations, Wanted
from castoff.fleet.settings import subject_word

__all__ = ["PROMISED", "Placement"]

PROMISED: Final = 10.0
"""Seconds for which room is promised: a machine's config is sent and written down within one."""
_LONGEST: Final = 1.0
_ENOUGH: Final = 0.03
"""Seconds more that others have after the first host offered room,"""
_BEST: Final = 0.003
"""and after one that has all of the image did."""
_BUSY: Final = 2.0
"""Seconds within which hosts whose room is promised to others are asked again,"""
_AGAIN: Final = 0.02
"""and at least so many between."""

Share = Callable[[Question], tuple[float, int]]
"""How much of an image this host has, and how near one that has it is."""


class Placement:
    """This host as one that asks and one that is asked. Made by :meth:`open`.

    Attributes:
        reservations: What this host has promised.
    """

    def __init__(
        self, connection: Connection, members: Members, region: str, reservations: Reservations, total: Capacity, share: Share
    ) -> None:
        self._connection = connection
        self._members = members
        self._region = region
        self._total = total
        self._share = share
        self.reservations = reservations

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        connection: Connection,
        members: Members,
        *,
        region: str,
        total: Capacity,
        reservations: Reservations,
        share: Share,
    ) -> AsyncIterator[Placement]:
        """Answers other hosts for the block.

        Args:
            connection: The way to them.
            members: Who they are.
            region: This host's.
            total: All the room that it has.
            reservations: What it promises.
            share: How much of an image it has.
        """
        placement = cls(connection, members, region, reservations, total, share)
        await connection.serve(placement._place(region), placement._answer)
        await connection.serve(connection.subject("release"), placement._release)
        yield placement

    async def ask(self, image: str, layers: tuple[str, ...], wanted: Wanted, region: str) -> list[Offer]:
        """The offers of a region's hosts, this one's too, the best first; each must be used or released within seconds.

        Args:
            image: The image's reference.
            layers: Its layers' diffIDs, where they are known.
            wanted: What the machine needs.
            region: Where it is to be; empty: in this host's region.

        Raises:
            Unavailable: This host is cut off.
        """
        region = region or self._region
        hosts = {member.record.id for member in self._members.alive() if member.record.region == region}
        if not hosts:
            raise Unavailable(f"no host of region {region[:40]!r} is there", hint="`castoff fleet hosts` lists regions and hosts")
        end = time.monotonic() + _BUSY
        while True:
            question = Question(id=secrets.token_hex(8), image=image[:1024], layers=layers, wanted=wanted)
            offers = await self._asked_once(question, region, hosts)
            found = ranked(question, offers)
            if found or time.monotonic() >= end or not any(offer.busy for offer in offers):
                return found
            await asyncio.sleep(random.uniform(_AGAIN, 3 * _AGAIN))  # others hold what they will not take

    async def _asked_once(self, question: Question, region: str, hosts: set[str]) -> list[Offer]:
        heard: dict[str, Offer] = {}

        def patience(data: bytes) -> float:
            if len(heard) >= len(hosts):
                return 0.0
            offers = [offer for offer in heard.values() if offer.promise]
            if any(offer.share >= 1.0 for offer in offers):
                return _BEST
            return _ENOUGH if offers else _LONGEST

        place = self._place(region)
        answers = self._connection.ask_all(place, msgspec.json.encode(question), within=_LONGEST, patience=patience)
        used: tuple[str, ...] = ()
        try:
            async with aclosing(answers):
                async for data in answers:
                    with contextlib.suppress(Invalid):  # a host of another version: as if it had no room
                        offer = read_offer(data)
                        if offer.host in hosts:
                            heard.setdefault(offer.host, offer)
            used = tuple(heard)
            return list(heard.values())
        finally:
            if len(used) < len(hosts):  # some answer later, or whoever asked went away
                with contextlib.suppress(CastoffError):
                    await self._connection.tell(place, msgspec.json.encode(Over(question=question.id, heard=used)))

    async def release(self, offers: list[Offer]) -> None:
        """Gives promises back that are not used; what is not heard ends by its time."""
        if not offers:
            return
        with contextlib.suppress(CastoffError):
            await self._connection.tell(
                self._connection.subject("release"), msgspec.json.encode([offer.promise for offer in offers])
            )

    def _place(self, region: str) -> str:
        return self._connection.subject("place", subject_word(region))

    async def _answer(self, data: bytes) -> bytes | None:
        try:
            question = read_question(data)
        except Invalid:
            return None
        own = self._members.own
        if isinstance(question, Over):
            if own not in question.heard:
                self.reservations.release(promise_id(question.question, own))
            return None
        free = self.reservations.free()
        promise = self.reservations.promise(question.wanted, PROMISED, promise_id(question.id, own))
        if promise is None:
            offer = Offer(host=own, busy=self.reservations.fits_later(question.wanted))
        else:
            share, near = self._share(question)
            offer = Offer(host=own, promise=promise, share=share, near=near, free=_fraction(free, self._total))
        return msgspec.json.encode(offer)

    async def _release(self, data: bytes) -> bytes | None:
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            for identity in msgspec.json.decode(data[: 1 << 20], type=list[str]):
                self.reservations.release(identity)
        return None


def _fraction(free: Capacity, total: Capacity) -> float:
    """How much is free: of processors or memory, whichever is less."""
    parts = [left / whole for left, whole in ((free.cpus, total.cpus), (free.memory_mb, total.memory_mb)) if whole > 0]
    return min(1.0, max(0.0, min(parts, default=0.0)))
