"""A registry behind a link: in a network namespace of its own, joined by a veth pair whose two ends are shaped (tbf).

    with link(directory, storage) as far:
        far.shape(200)      # Mbit/s, both ways
        far.host            # HOST:PORT of the registry
        far.late            # the same, by a proxy that hands on each byte 10 ms after it came
        far.received()      # bytes that have come over the link so far, headers included

netem, which could delay packets, is in few kernels, and tbf in most; so the delay is a proxy's, at the far end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.daemons import daemon, wait_for

__all__ = ["DELAY", "Link", "link"]

DELAY = 0.01
"""Seconds that the late way adds to what the registry answers."""
_PREFIX = "castoff-bench-"
_PORT, _LATE_PORT = 5000, 5001
_BURST_SECONDS = 0.004
"""Of the rate, that may pass at once: the kernel's timer must wake more often than that (HZ is 250 or more)."""
_LEAST_BURST = 96 << 10
"""Bytes: more than one segment of the stack's offloading, 64 KiB, which tbf would otherwise cut up or drop."""


@dataclass(frozen=True, slots=True)
class Link:
    """The near end."""

    host: str
    late: str
    device: str
    """Our end of the pair."""
    namespace: str

    def shape(self, megabits: int) -> None:
        """Sets both directions' rate."""
        burst = max(int(megabits * 1e6 / 8 * _BURST_SECONDS), _LEAST_BURST)
        shaped = ["root", "tbf", "rate", f"{megabits}mbit", "burst", str(burst), "latency", "50ms"]
        _run("tc", "qdisc", "replace", "dev", self.device, *shaped)
        _run("ip", "netns", "exec", self.namespace, "tc", "qdisc", "replace", "dev", "far", *shaped)

    def received(self) -> int:
        """Bytes that came in."""
        return int(Path(f"/sys/class/net/{self.device}/statistics/rx_bytes").read_text())


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def link(directory: Path, storage: Path) -> Iterator[Link]:
    """The registry and its link for the block, at 1 Gbit/s to begin with.

    Args:
        directory: Empty; for configuration and logs.
        storage: What another docker-registry stores at: both serve the same.
    """
    _sweep()
    name, device = f"{_PREFIX}{os.getpid()}", f"cob{os.getpid()}"
    network = f"10.213.{os.getpid() % 64}"  # a host with a route of its own to there is unlikely, and two benches are rarely one
    found = Link(f"{network}.2:{_PORT}", f"{network}.2:{_LATE_PORT}", device, name)
    within = ["ip", "netns", "exec", name]
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", device, "type", "veth", "peer", "name", "far", "netns", name)
        _run("ip", "addr", "add", f"{network}.1/30", "dev", device)
        _run("ip", "link", "set", device, "up")
        for words in (
            ("addr", "add", f"{network}.2/30", "dev", "far"),
            ("link", "set", "far", "up"),
            ("link", "set", "lo", "up"),
        ):
            _run(*within, "ip", *words)
        found.shape(1000)
        with _registry(found, directory, storage, within), _proxy(found, directory, within):
            yield found
    finally:
        _run("ip", "netns", "delete", name)  # the pair goes with it


def _sweep() -> None:
    """Clears away the namespaces of benches that were killed."""
    for path in Path("/run/netns").glob(f"{_PREFIX}*"):
        if not Path("/proc", path.name.removeprefix(_PREFIX)).exists():
            _run("ip", "netns", "delete", path.name)


@contextlib.contextmanager
def _registry(found: Link, directory: Path, storage: Path, within: list[str]) -> Iterator[None]:
    config, log = directory / "far.yml", directory / "far.log"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: ':{_PORT}'}}\n"
    )
    with daemon([*within, "docker-registry", "serve", str(config)], log) as process:
        wait_for("the registry behind the link", lambda: _answers(found.host), process, log)
        yield


@contextlib.contextmanager
def _proxy(found: Link, directory: Path, within: list[str]) -> Iterator[None]:
    log = directory / "late.log"
    command = [*within, sys.executable, "-m", "bench.link", str(_LATE_PORT), f"127.0.0.1:{_PORT}", str(DELAY)]
    with daemon(command, log) as process:
        wait_for("the late proxy", lambda: _answers(found.late), process, log)
        yield


def _answers(host: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}/v2/", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# The late proxy's own process.


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Each piece goes on so long after it came; pieces that are under way do not wait for each other."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
    clock = asyncio.get_running_loop().time

    async def take() -> None:
        while True:
            data = await reader.read(1 << 16)
            await pieces.put((clock() + seconds, data))
            if not data:
                return

    taking = asyncio.create_task(take())
    try:
        while True:
            when, data = await pieces.get()
            if (left := when - clock()) > 0:
                await asyncio.sleep(left)
            if not data:
                return
            writer.write(data)
            await writer.drain()
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        writer.close()


async def _serve(port: int, upstream: str, seconds: float) -> None:
    host, _, number = upstream.partition(":")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, asks = await asyncio.open_connection(host, int(number))
        both = (_hand_on(reader, asks, 0.0), _hand_on(answers, writer, seconds))
        await asyncio.gather(*both, return_exceptions=True)  # an end that is gone ends the other, too

    server = await asyncio.start_server(connected, "0.0.0.0", port, reuse_address=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
