"""The network's members, in a namespace of their own, with taps and without machines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

SCRIPT = """
import asyncio, json, os, subprocess
from castoff.agent.network.network import device_name, open_network
from castoff.lifecycle.config import parse_config
from castoff.lifecycle.launcher import Launch
from castoff.lifecycle.ports import Published
from castoff.lifecycle.settings import NetworkSettings
from castoff.machine.model import MachineId
from castoff.vmm.rates import Rates
from castoff.vmm.tap import open_tap

SETTINGS = NetworkSettings(mode="bridge", publish=("192.0.2.1",))
IDS = [MachineId(letter * 14) for letter in "abc"]

RATES, FASTER = Rates(network_bytes=1 << 20), Rates(network_bytes=2 << 20)

def limits():
    found = json.loads(subprocess.run(["nft", "-j", "list", "limits"], capture_output=True, text=True, check=True).stdout)
    rows = [entry["limit"] for entry in found["nftables"] if "limit" in entry]
    units = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20}
    return sorted({(row["name"][1], str(row["rate"] * units[row.get("rate_unit", "bytes")])) for row in rows})

def launch(number, app="one", port=8000):
    return Launch(
        machine=IDS[number], name="x", app=app, version="v", config=parse_config({"image": "x"}),
        address=f"10.211.0.{number + 2}", address6=f"fdca:57f0:ff::{number + 2}", ports=(Published(port + number, 80),),
    )

async def network():
    found = await open_network(SETTINGS, {"one": 1, "two": 2}.__getitem__)
    assert found is not None
    return found

def rules():
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout

def taps():
    return sorted(os.listdir("/sys/class/net/castoff0/brif"))

def has(number, text):
    return f"10.211.0.{number + 2} " in text and f"10.211.0.{number + 2} . 80" in text

async def main():
    first = await network()
    cards = await asyncio.gather(*(first.admit(launch(number), RATES) for number in range(3)))
    held = [open_tap(card) for card in cards]
    assert all(has(number, rules()) for number in range(3))
    neighbours = subprocess.run(["ip", "neigh"], capture_output=True, text=True, check=True).stdout
    assert neighbours.count("PERMANENT") == 6, neighbours

    await first.admit(launch(0, "two", 9000), FASTER)  # of another app now, with another port
    assert "10.211.0.2 : 0x00000002" in rules() and ". 9000 :" in rules() and ". 8000 :" not in rules()
    assert limits() == [("a", "2097152"), ("b", "1048576"), ("c", "1048576")]

    await first.close_ports(IDS[0])  # it does not run
    await first.close_ports(IDS[0])
    assert ". 9000 :" not in rules() and ". 8001 :" in rules() and "10.211.0.2 : 0x00000002" in rules()
    await first.admit(launch(0, "two", 9000), FASTER)  # it is started again
    assert ". 9000 :" in rules()

    second = await network()  # the agent was killed
    await second.admit(launch(0, "two", 9000), RATES)  # it has another configuration
    assert limits()[0] in (("a", "1048576"), ("a", "2097152"))
    assert await second.tidy(IDS[:2]) == 1  # the second machine is not let in again yet
    assert taps() == sorted(map(device_name, IDS[:2])) and has(0, rules()) and has(1, rules())
    await second.admit(launch(1), Rates())
    assert await second.tidy(IDS[:2]) == 0
    assert has(0, rules()) and has(1, rules()) and not has(2, rules())
    assert limits() == [("a", "1048576")]

    subprocess.run(["nft", "flush", "ruleset"], check=True)  # somebody's mistake
    await second.tidy(IDS[:2])
    assert has(0, rules()) and has(1, rules()) and limits() == [("a", "1048576")]
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    await second.dismiss(IDS[0])  # finds other rules than it knows of
    assert has(1, rules()) and not has(0, rules()) and taps() == [device_name(IDS[1])]
    await second.close_ports(IDS[1])
    await second.dismiss(IDS[1])
    await second.dismiss(IDS[1])
    assert "elements" not in rules() and taps() == [] and limits() == []
    print("whole", len(held))

asyncio.run(main())
"""


@pytest.fixture(name="namespace")
def _namespace() -> Iterator[str]:
    name = f"castoff-tidy-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def test_members_come_and_go_and_outlive_their_agent(namespace: str) -> None:
    """Let in together, changed, taken up by the next agent, which removes nobody's that it does not know of yet; and restored
    where somebody flushed the rules."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("whole 3\n", 0), done.stderr
