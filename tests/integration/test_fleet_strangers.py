"""Who may meet at NATS: hosts that prove who they are, over TLS; whoever cannot is refused, told why, and goes on alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import nkeys
import pytest

from castoff.fleet.connection import Connection
from castoff.fleet.members import Members
from castoff.fleet.record import HostRecord
from castoff.fleet.settings import FleetSettings
from fleet_authority import Authority
from nats_servers import nats_server

BEAT = 0.2


def nkey(path: Path) -> str:
    """A new key's public part; its seed is at ``path``."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    path.write_bytes(seed)
    return str(nkeys.from_seed(bytearray(seed)).public_key.decode())


@contextlib.asynccontextmanager
async def joined(number: int, settings: FleetSettings, told: list[str], clock: int = 0) -> AsyncIterator[Members]:
    record = HostRecord(id=f"{number:016x}", name=f"host-{number}", region="fra", clock=clock)
    async with (
        Connection.open(settings, told.append) as connection,
        Members.open(connection, lambda: record, notice=told.append, beat=BEAT) as members,
    ):
        yield members


def names(members: Members) -> list[str]:
    return [member.record.name for member in members.alive()]


async def becomes(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def refused(settings: FleetSettings, friend: Members) -> str:
    """What a stranger is told; nobody hears of him."""
    told: list[str] = []
    async with joined(9, settings, told) as stranger:
        await becomes(lambda: bool(told))
        await asyncio.sleep(4 * BEAT)
        assert stranger.is_cut_off
        assert names(stranger) == []
        assert names(friend) == ["host-1"]
    assert len(told) == 1
    return told[0]


async def test_hosts_with_keys_of_their_own(tmp_path: Path) -> None:
    """NKeys: the servers know the public parts only."""
    known = [nkey(tmp_path / name) for name in ("one", "two")]
    nkey(tmp_path / "stranger")
    users = ", ".join(f"{{ nkey: {key} }}" for key in known)
    with nats_server(tmp_path / "nats", f"authorization {{ users: [{users}] }}") as server:
        told: list[str] = []
        of = FleetSettings(urls=(server.url,))
        one, two, other = (FleetSettings(urls=of.urls, nkey=tmp_path / name) for name in ("one", "two", "stranger"))
        async with joined(1, one, told) as first:
            await becomes(lambda: names(first) == ["host-1"])
            for settings in (of, other):
                assert "Authorization Violation" in await refused(settings, first)
            async with joined(2, two, told) as second:
                await becomes(lambda: names(first) == names(second) == ["host-1", "host-2"])
        assert told == []


async def test_hosts_with_certificates(tmp_path: Path) -> None:
    """TLS both ways: a server of another authority is not spoken to, nor a host of another."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    serving = ours.settings("server")
    one, stranger = ours.settings("host-1"), theirs.settings("stranger")
    tls = f'tls {{ cert_file: "{serving.certificate}", key_file: "{serving.key}", ca_file: "{ours.file}", verify: true }}'
    with nats_server(tmp_path / "nats", tls) as server:
        urls = (server.url.replace("nats://", "tls://"),)
        own = FleetSettings(urls=urls, authority=ours.file, certificate=one.certificate, key=one.key)
        async with joined(1, own, []) as first:
            await becomes(lambda: names(first) == ["host-1"])
            await refused(FleetSettings(urls=urls, authority=ours.file), first)
            await refused(
                FleetSettings(urls=urls, authority=ours.file, certificate=stranger.certificate, key=stranger.key), first
            )
            told = await refused(FleetSettings(urls=urls, authority=theirs.file), first)
            assert "CERTIFICATE_VERIFY_FAILED" in told


async def test_fleets_of_other_names_do_not_meet(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with (
            joined(1, FleetSettings(urls=(server.url,)), []) as one,
            joined(2, FleetSettings(urls=(server.url,), name="other"), []) as two,
        ):
            await becomes(lambda: (names(one), names(two)) == (["host-1"], ["host-2"]))
            await asyncio.sleep(4 * BEAT)
            assert (names(one), names(two)) == (["host-1"], ["host-2"])


@pytest.mark.parametrize("clock", [0, 1_000_000_000, 1 << 40])
async def test_clocks_that_differ(tmp_path: Path, clock: int) -> None:
    """By minutes or by ages: hosts see one another all the same."""
    with nats_server(tmp_path / "nats") as server:
        settings = FleetSettings(urls=(server.url,))
        async with joined(1, settings, [], clock=1_800_000_000) as one, joined(2, settings, [], clock=clock) as two:
            await becomes(lambda: names(one) == names(two) == ["host-1", "host-2"])
            await asyncio.sleep(6 * BEAT)
            assert names(one) == names(two) == ["host-1", "host-2"]
