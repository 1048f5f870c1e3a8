"""Which machine is on which host: each host tells of its own, so that any of them can be asked about all."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Final

import msgspec
import zstandard

from castoff.errors import Invalid
from castoff.fleet.connection import Connection
from castoff.fleet.told import telling

__all__ = ["MachineRow", "Roster", "pack_rows", "read_rows"]

_MOST_BYTES: Final = 256 << 20
_VALUE_BYTES: Final = 1_000_000
"""Within a message of a NATS server as it comes, 1 MiB: some 10,000 machines a host."""
_PLAIN_BYTES: Final = 16 << 20
_MOST_ROWS: Final = 20_000
_LOOK: Final = 1.0
_EXPECTED: Final = 60.0

_Text = Annotated[str, msgspec.Meta(max_length=512)]


class MachineRow(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What other hosts are told of a machine."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{14}\Z")]
    app: _Text
    name: _Text
    state: _Text
    region: _Text
    version: _Text
    image: _Text
    created: int
    updated: int


def pack_rows(rows: Sequence[MachineRow]) -> tuple[bytes, int]:
    """What is told of machines, zstd of JSON; and of how many it is: those that are too many are left out."""
    count = min(len(rows), _MOST_ROWS)
    while True:
        plain = msgspec.json.encode(rows[:count])
        packed = zstandard.ZstdCompressor(level=1).compress(plain)
        if len(packed) <= _VALUE_BYTES and len(plain) <= _PLAIN_BYTES:
            return packed, count
        count = count * 3 // 4


def read_rows(data: bytes) -> dict[str, MachineRow]:
    """What a host told of its machines, by their ids.

    Raises:
        Invalid: It makes no sense, or is more than any host tells.
    """
    if not data:
        return {}
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 24).stream_reader(io.BytesIO(data)) as reader:
            plain = reader.read(_PLAIN_BYTES + 1)  # whatever the frame says of its length
        if len(plain) > _PLAIN_BYTES:
            raise Invalid("its list of machines is too long")
        rows = msgspec.json.decode(plain, type=list[MachineRow])
    except (zstandard.ZstdError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"its list of machines is none: {error}") from error
    return {row.id: row for row in rows}


class Roster:
    """The machines of all hosts but this one. Made by :meth:`open`."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._rows: dict[str, dict[str, MachineRow]] = {}
        self._host: dict[str, str] = {}
        self._expected: dict[str, tuple[str, str, float]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, connection: Connection, own: str, rows: Callable[[], Sequence[MachineRow]], *, notice: Callable[[str], None]
    ) -> AsyncIterator[Roster]:
        """Tells and hears for the block.

        Args:
            connection: The way to the other hosts.
            own: This host's id.
            rows: Its machines now.
            notice: Called with a line for people.
        """
        roster = cls(own)
        last = b""
        packed = pack_rows([])[0]
        told = False

        async def say() -> bytes:
            nonlocal last, packed, told
            found = rows()
            plain = msgspec.json.encode(found)
            if plain != last:
                packed, count = await asyncio.to_thread(pack_rows, found)
                last = plain
                if count < len(found) and not told:
                    notice(f"this host tells its fleet of {count} of its {len(found)} machines: of the others only it knows")
                    told = True
            return packed

        limits = {"most_bytes": _MOST_BYTES, "value_bytes": _VALUE_BYTES}
        async with telling(connection, "machines", own, say, roster._hear, every=_LOOK, notice=notice, forget=False, **limits):
            yield roster

    def find(self, machine: str) -> str | None:
        """The id of the other host that has a machine."""
        host = self._host.get(machine)
        if host is not None:
            return host
        expected = self._expected.get(machine)
        return expected[1] if expected is not None and expected[2] > time.monotonic() else None

    def row(self, machine: str) -> MachineRow | None:
        """What its host last told of a machine."""
        return self._rows.get(self._host.get(machine, ""), {}).get(machine)

    def of_app(self, app: str) -> dict[str, list[MachineRow]]:
        """The machines of an app by their hosts' ids; of a host from which one is expected, perhaps none."""
        found = {host: [row for row in rows.values() if row.app == app] for host, rows in self._rows.items()}
        now = time.monotonic()
        expecting = {host for name, host, until in self._expected.values() if name == app and until > now}
        return {host: found.get(host, []) for host in found.keys() | expecting if found.get(host) or host in expecting}

    def by_host(self) -> dict[str, list[MachineRow]]:
        """All machines by their hosts' ids."""
        return {host: list(rows.values()) for host, rows in self._rows.items()}

    def expect(self, machine: str, app: str, host: str) -> None:
        """A machine was just made on another host, which has not told of it yet."""
        now = time.monotonic()
        self._expected = {key: value for key, value in self._expected.items() if value[2] > now}
        self._expected[machine] = (app, host, now + _EXPECTED)

    def _hear(self, host: str, data: bytes) -> None:
        if host == self._own:
            return
        rows = read_rows(data)
        for machine in self._rows.pop(host, {}):
            if self._host.get(machine) == host:
                del self._host[machine]
        if rows:
            self._rows[host] = rows
        for machine in rows:
            self._host.setdefault(machine, host)  # what another host says that it has stays that one's
