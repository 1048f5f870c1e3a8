"""Addresses and ports of machines: each has its own, whoever comes and goes."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import Conflict, Invalid, Unavailable
from castoff.lifecycle.addresses import Addresses, mac_address
from castoff.lifecycle.config import MachineConfig, parse_config
from castoff.lifecycle.model import Machine
from castoff.lifecycle.ports import Ports, Published
from castoff.lifecycle.states import State
from castoff.machine.model import MachineId

SMALL = IPv4Network("10.0.0.0/28"), IPv6Network("fd00::/64")


def machine(id: str, address: str = "", address6: str = "", *, state: State = State.STARTED, **config: object) -> Machine:
    document = {"image": "x", **config}
    return Machine(
        id=MachineId(id),
        app="a",
        name=id,
        region="here",
        state=state,
        version="v",
        digest="",
        document=document,
        config=parse_config(document),
        cordoned=False,
        restarts=0,
        wanted=State.STARTED,
        created=0,
        updated=0,
        address=address,
        address6=address6,
    )


def services(*pairs: tuple[int, int]) -> MachineConfig:
    listed = [{"protocol": "tcp", "internal_port": guest, "ports": [{"port": host}]} for host, guest in pairs]
    return parse_config({"image": "x", "services": listed})


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=80))
def test_no_two_machines_have_one_address(steps: list[tuple[bool, int]]) -> None:
    """A model of takes and releases; an agent that is started anew from the rows knows the same."""
    addresses, model = Addresses(*SMALL), dict[str, tuple[str, str]]()
    for takes, number in steps:
        name = f"m{number}"
        if not takes:
            addresses.release(name)
            model.pop(name, None)
        elif name in model or len(model) < 13:
            got = addresses.take(name)
            assert model.setdefault(name, got) == got
        else:
            with pytest.raises(Unavailable):
                addresses.take(name)
    assert len(set(model.values())) == len(model)
    assert not {"10.0.0.0", "10.0.0.1", "10.0.0.15"} & {ipv4 for ipv4, _ in model.values()}
    again = Addresses(*SMALL)
    again.load(machine(name, *got) for name, got in model.items())
    assert {name: again.take(name) for name in model} == model


def test_an_address_of_another_network_or_of_a_destroyed_machine_is_free() -> None:
    addresses = Addresses(*SMALL)
    gone = machine("gone", "10.0.0.2", "fd00::2", state=State.DESTROYED)
    addresses.load([machine("old", "10.9.0.2", "fd00::2"), machine("odd", "10.0.0.3", "fd00::4"), gone])
    assert addresses.take("new") == ("10.0.0.2", "fd00::2")
    assert addresses.take("old") == ("10.0.0.3", "fd00::3")
    assert Addresses().take("x") == ("", "")


def test_an_address_rests_before_it_is_anothers() -> None:
    addresses = Addresses(*SMALL)
    first = addresses.take("first")
    addresses.release("first")
    assert addresses.take("second") != first


def test_mac_addresses_are_ours_and_end_with_the_address() -> None:
    assert mac_address("10.211.0.2") == "02:ca:0a:d3:00:02"


def test_a_port_leads_to_one_machine() -> None:
    ports = Ports(1024)
    assert ports.published(services((443, 80), (8080, 80))) == (Published(8080, 80),)
    with ports.claimed("a", services((8080, 80))), pytest.raises(Conflict), ports.claimed("b", services((8080, 80))):
        pass
    ports.keep("a", services((8080, 80)))
    with pytest.raises(Conflict), ports.claimed("b", services((8080, 90))):
        pass
    with pytest.raises(Invalid), ports.claimed("b", services((9000, 80), (9000, 81))):
        pass
    ports.keep("a", None)
    with ports.claimed("b", services((8080, 90))):
        pass


def test_an_update_that_fails_keeps_what_was_and_one_under_way_what_it_wants() -> None:
    ports = Ports(1024)
    old, new, newer = services((8000, 1)), services((8001, 1)), services((8002, 1))
    with ports.claimed("a", old):
        pass
    with ports.claimed("a", new), ports.claimed("a", newer):
        ports.keep("a", old)  # a third has failed meanwhile
        for taken in (old, new, newer):
            with pytest.raises(Conflict), ports.claimed("b", taken):
                pass
    ports.keep("a", newer)
    with ports.claimed("b", old), ports.claimed("b", new):
        pass
    with pytest.raises(Conflict), ports.claimed("b", newer):
        pass


def test_no_port_is_published_where_the_operator_says_none() -> None:
    ports = Ports()
    ports.load([msgspec.structs.replace(machine("a"), config=services((8080, 80)))])
    assert ports.published(services((8080, 80))) == ()
    with ports.claimed("b", services((8080, 80))):
        pass
