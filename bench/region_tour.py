"""``make fleet``: three hosts in network namespaces on this machine meet at NATS, and boot an image that none of them has.

What it prints at the end is counted by the hosts' own kernels (nftables): who had how much from whom.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.measure import Failed, started
from bench.region import RegionHost
from bench.region_lab import RegionLab, region_lab, whole

__all__ = ["main"]

_IMAGE = "medium"
_HOSTS = 3
_PROGRAM = "import os; print('hello from', os.environ['WHERE'], flush=True); import time; time.sleep(600)"
_SECONDS = 60


def main() -> int:
    """Shows it; the exit status."""
    if os.geteuid() != 0:
        print("fleet: needs root: network namespaces do", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))  # as an exception: everything is cleared away
    with tempfile.TemporaryDirectory(prefix="castoff-fleet-", dir="/var/tmp") as scratch:
        print("fleet: a registry (200 Mbit/s), a NATS server, three hosts (1 Gbit/s each)", flush=True)
        with region_lab(Path(scratch) / "region", _IMAGE, hosts=_HOSTS) as lab, lab.region.serving_nats(Path(scratch)):
            _show(lab)
    return 0


def _show(lab: RegionLab) -> None:
    hosts = lab.region.hosts
    lab.fresh(hosts)
    with lab.agents(hosts, nats=lab.region.nats):
        _meet(hosts[0])
        print(subprocess.run(_castoff(hosts[0], "fleet", "hosts"), check=True, stdout=subprocess.PIPE, text=True).stdout)
        for host in hosts:
            _count(host, lab)
        print(f"fleet: all of them, at once: castoff run {lab.image.rpartition('@')[0]} python3 -c ...", flush=True)
        _boot(hosts, lab.image)
        _print_table(lab)


def _castoff(host: RegionHost, *words: str) -> list[str]:
    settings = host.directory / "agent-region.toml"  # the agent's own
    return host.within(sys.executable, "-m", "castoff", "--config", settings, *words)


def _meet(host: RegionHost) -> None:
    """Waits until a host sees all."""
    end = time.monotonic() + _SECONDS
    while True:
        told = subprocess.run(_castoff(host, "--json", "fleet", "hosts"), stdout=subprocess.PIPE, text=True)
        if told.returncode == 0 and len(json.loads(told.stdout)) >= _HOSTS:
            return
        if time.monotonic() > end:
            raise Failed(f"the hosts do not meet: {told.stdout}")
        time.sleep(0.3)


def _boot(hosts: Sequence[RegionHost], image: str) -> None:
    begun = time.monotonic()
    words = ["--quiet", "run", "--vmm", "qemu", "--lazy", "always", "--env"]
    with contextlib.ExitStack() as stack:
        commands = [_castoff(host, *words, f"WHERE=host-{host.number}", image, "python3", "-c", _PROGRAM) for host in hosts]
        for process in [stack.enter_context(started(command)) for command in commands]:
            assert process.stdout is not None and process.stderr is not None
            if not (line := process.stdout.readline()):
                raise Failed(f"castoff run said nothing: {process.stderr.read()[-1000:]}")
            print(f"  {time.monotonic() - begun:5.1f} s  {line.strip()}", flush=True)
        asyncio.run(_all_whole(hosts))
        print(f"  {time.monotonic() - begun:5.1f} s  each has all of the image\n", flush=True)


async def _all_whole(hosts: Sequence[RegionHost]) -> None:
    await asyncio.gather(*map(whole, hosts))


def _names(lab: RegionLab) -> dict[str, str]:
    """Addresses by the names of who has them."""
    found = {"registry": lab.region.registry.partition(":")[0]}
    return found | {f"host-{host.number}": host.url.split("/")[2].partition(":")[0] for host in lab.region.hosts}


def _count(host: RegionHost, lab: RegionLab) -> None:
    """Has the host's kernel count what comes, by who sent it."""
    rules = [f"ip saddr {address} counter" for address in _names(lab).values()]
    text = "table ip castofftour { chain input { type filter hook input priority 0; " + "; ".join(rules) + "; }; }"
    subprocess.run(host.within("nft", "-f", "-"), input=text, text=True, check=True)


def _print_table(lab: RegionLab) -> None:
    names = _names(lab)
    print("MB".ljust(10) + "".join(f"from {name}".rjust(16) for name in names))
    for host in lab.region.hosts:
        listed = subprocess.run(
            host.within("nft", "-j", "list", "table", "ip", "castofftour"), check=True, stdout=subprocess.PIPE
        )
        came = [
            part["counter"]["bytes"]
            for entry in json.loads(listed.stdout)["nftables"]
            if "rule" in entry
            for part in entry["rule"]["expr"]
            if "counter" in part
        ]
        name = f"host-{host.number}"
        cells = ["" if other == name else f"{size / 1e6:.1f}" for other, size in zip(names, came, strict=True)]
        print(f"to {name}".ljust(10) + "".join(cell.rjust(16) for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
