"""Agents of a fleet, each a process, that lose one another: killed, or cut off without a word, as a pulled cable does it.

All are in one network namespace, where each reaches NATS under an address of its own, so that packets of one can be dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents import AgentProcess, agent
from daemons import daemon, tail, wait_for
from machines import Castoff

SPACE = f"castoff-fleet-{os.getpid()}"
HOSTS = ("one", "two", "three")


@dataclass(frozen=True, slots=True)
class Host(Castoff):
    """The command on a host."""

    def command(self, *words: str) -> list[str]:
        # `ip netns exec` would give it mounts of its own
        return ["nsenter", f"--net=/run/netns/{SPACE}", *Castoff.command(self, *words)]

    def fleet(self) -> dict[str, Any]:
        """Who is alive by what this host says, by name; and whether it is seen itself."""
        status, hosts = self("fleet", "status", "--json"), self.json("fleet", "hosts")
        assert status.returncode in (0, 1), status.stderr
        return {"seen": status.returncode == 0, "hosts": {host["name"]: host["id"] for host in hosts}}


@pytest.fixture(name="hosts")
def _hosts(scratch_xfs: Path) -> Iterator[dict[str, Host]]:
    _run("ip", "netns", "add", SPACE)
    try:
        _run("ip", "-n", SPACE, "link", "set", "lo", "up")
        _nft("add table ip cut", "add chain ip cut in { type filter hook input priority 0; }")
        directory = scratch_xfs / "nats"
        directory.mkdir()
        (directory / "conf").write_text(f'listen: "0.0.0.0:4222"\njetstream {{ store_dir: "{directory}" }}\n')
        command = ["nsenter", f"--net=/run/netns/{SPACE}", "nats-server", "-c", str(directory / "conf")]
        with daemon(command, directory / "log") as server:
            wait_for("nats-server", lambda: "Server is ready" in tail(directory / "log"), server, directory / "log")
            hosts = {}
            for number, name in enumerate(HOSTS):
                config = scratch_xfs / f"{name}.toml"
                config.write_text(
                    f'store.backing = "native"\nagent.listen = ""\n'
                    f'[fleet]\nurls = ["nats://{_address(number)}:4222"]\nhost = "{name}"\n'
                    f'[peers]\nlisten = "{_address(number)}:4290"\nurl = "http://{_address(number)}:4290"\n'
                )
                hosts[name] = Host(scratch_xfs / name, "", config)
            yield hosts
    finally:
        _run("ip", "netns", "delete", SPACE)


def _address(number: int) -> str:
    return f"127.0.0.{number + 2}"


def _run(*command: str, text: str | None = None) -> None:
    subprocess.run(command, input=text, text=True, check=True, capture_output=True, timeout=30)


def _nft(*lines: str) -> None:
    _run("ip", "netns", "exec", SPACE, "nft", "-f", "-", text="\n".join(lines) + "\n")


def _becomes(found: Callable[[], Any], enough: Callable[[Any], bool], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not enough(answer := found()):
        assert time.monotonic() < end, answer
        time.sleep(0.1)
    return answer


def test_hosts_are_lost_and_come_back(hosts: dict[str, Host]) -> None:
    """One is killed, one cut off: a third notices both. What is cut off says so, works on, and knows whom it asked last."""
    one, two, three = hosts.values()
    with contextlib.ExitStack() as stack:
        agents: list[AgentProcess] = [stack.enter_context(agent(host)) for host in hosts.values()]
        known = _becomes(three.fleet, lambda found: set(found["hosts"]) == set(HOSTS))
        peers = one.state / "agent" / "peers"
        _becomes(lambda: peers.read_text().split(), lambda urls: len(urls) == 2)

        agents[1].kill()
        _nft(f"add rule ip cut in ip saddr {_address(0)} drop", f"add rule ip cut in ip daddr {_address(0)} drop")
        _becomes(three.fleet, lambda found: set(found["hosts"]) == {"three"} and found["seen"])
        _becomes(one.fleet, lambda found: not found["seen"])
        assert len(peers.read_text().split()) == 2
        assert b"goes on alone" in one("fleet", "status").stdout
        assert one("app", "create", "meanwhile").returncode == 0

        _becomes(lambda: agents[0].said, lambda said: "is cut off from its fleet" in said)  # TCP says nothing: found out by pings

        _nft("flush chain ip cut in")
        stack.enter_context(agent(two))
        for host in hosts.values():
            found = _becomes(host.fleet, lambda found: set(found["hosts"]) == set(HOSTS) and found["seen"])
            assert found["hosts"] == known["hosts"]  # each is who it was
        assert "back in its fleet" in agents[0].said
        assert json.loads(one("fleet", "hosts", "--json").stdout)
