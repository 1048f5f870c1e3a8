"""QEMU's command line, as a pure function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from castoff.errors import Invalid
from castoff.vmm.process import Owner, owner_for, user_ids
from castoff.vmm.qemu_command import OpenDrive, qemu_command, shape
from castoff.vmm.rates import Rates
from castoff.vmm.settings import VmmSettings
from castoff.vmm.vmm import MachineSpec, PortForward

DESCRIPTORS = {"qmp": 10, "channel": 11, "control": 12, "kernel": 13, "initramfs": 14, "console": 15}
DRIVES = (OpenDrive("base", 20, True, False), OpenDrive("upper", 21, False, True))


def command(*, kvm: bool = False, **changes: Any) -> list[str]:
    directory = Path("/nowhere")
    spec = MachineSpec(
        **{
            "id": "m",
            "directory": directory,
            "cpus": 2,
            "memory": 300 << 20,
            "kernel": directory,
            "initramfs": directory,
            "drives": (),
            **changes,
        }
    )
    return qemu_command(spec, binary="qemu", kvm=kvm, descriptors=DESCRIPTORS, drives=DRIVES, extra=("from=settings",))


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_nothing_is_opened_by_name() -> None:
    """All files are descriptors: QEMU runs as a user who owns nothing."""
    words = command()
    assert "/nowhere" not in " ".join(words)
    assert value(words, "-kernel") == "/proc/self/fd/13" and value(words, "-initrd") == "/proc/self/fd/14"
    blockdevs = [words[at + 1] for at, word in enumerate(words) if word == "-blockdev"]
    assert "file.filename=/dev/fdset/0" in blockdevs[0] and "read-only=on" in blockdevs[0] and "cache.direct=off" in blockdevs[0]
    assert "file.filename=/dev/fdset/1" in blockdevs[1] and "read-only=off" in blockdevs[1] and "cache.direct=on" in blockdevs[1]
    assert "fd=20,set=0,opaque=base" in words and "virtio-blk-device,drive=drive1,serial=upper" in words


def test_it_is_sandboxed_and_named_after_its_machine() -> None:
    """With and without KVM."""
    for words in (command(), command(kvm=True)):
        assert value(words, "-sandbox") == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        assert value(words, "-name") == "castoff-m"
        assert value(words, "-bios") == "qboot.rom"  # SeaBIOS's ACPI tables lie where the initramfs is copied to
    assert value(command(kvm=True), "-accel") == "kvm" and "tsc_early_khz" not in value(command(kvm=True), "-append")
    assert value(command(), "-accel") == "tcg" and "tsc_early_khz=" in value(command(), "-append")


def test_the_network_is_the_specifications() -> None:
    """No card where none is wanted; published ports on the address that was given."""
    assert "-netdev" not in command(network=False)
    assert "castoff.net" not in value(command(network=False), "-append")
    words = command(ports=(PortForward(8080, 80), PortForward(53, 5353, "0.0.0.0", "udp")))
    assert value(words, "-netdev") == "user,id=net0,ipv6=off,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:0.0.0.0:53-:5353"
    assert "castoff.net=10.0.2.15/24,10.0.2.2,10.0.2.3" in value(words, "-append")
    assert value(command(kernel_args=("a=b",)), "-append").endswith("from=settings a=b")


@pytest.mark.parametrize(
    "port",
    [PortForward(80, 80, "localhost,id=x"), PortForward(80, 80, protocol="sctp"), PortForward(0, 80), PortForward(80, 65536)],
)
def test_ports_that_are_none_are_refused(port: PortForward) -> None:
    """No text of theirs gets into the command line."""
    with pytest.raises(Invalid):
        command(ports=(port,))


def test_each_machine_has_a_user_of_its_own() -> None:
    """The same each time, within the configured range; none where it is switched off."""
    settings = VmmSettings(first_uid=5000, uid_count=100)
    owners = {owner_for(f"machine-{number}", settings) for number in range(50)}
    for owner in owners:
        if owner is not None:  # we are root
            assert 5000 <= owner.uid < 5100 and owner == Owner(owner.uid, owner.uid)
    assert owner_for("m", settings) == owner_for("m", settings)
    assert owner_for("m", settings, 1234) == Owner(1234, 1234)
    few = VmmSettings(first_uid=5, uid_count=3)
    assert sorted(user_ids("m", few)) == [5, 6, 7] and owner_for("m", few) == Owner(*[next(user_ids("m", few))] * 2)
    assert owner_for("m", VmmSettings(own_user=False)) is None


def test_all_drives_share_one_limit_of_their_rate() -> None:
    """One group, the drives' nodes in it; without a limit no filter; what follows a suspension has the same shape."""
    assert "-object" not in command() and not any("throttle" in word for word in command())
    rates = Rates(disk_bytes=1_000_000, disk_operations=100, burst_seconds=2.5)
    words = command(rates=rates)
    assert json.loads(value(words, "-object")) == {
        "qom-type": "throttle-group",
        "id": "rates",
        "limits": {"bps-total": 1_000_000, "bps-total-max": 2_500_000, "iops-total": 100, "iops-total-max": 250},
    }
    nodes = [
        dict(part.split("=", 1) for part in words[at + 1].split(",")) for at, word in enumerate(words) if word == "-blockdev"
    ]
    filters = {node["node-name"]: node for node in nodes if node["driver"] == "throttle"}
    assert {name: (node["file"], node["throttle-group"]) for name, node in filters.items()} == {
        "drive0": ("file0", "rates"),
        "drive1": ("file1", "rates"),
    }
    assert [node["read-only"] for node in filters.values()] == ["on", "off"]
    assert all(node["discard"] == "unmap" for node in nodes)  # a filter without it swallows discards
    assert "virtio-blk-device,drive=drive0,serial=base" in words
    assert shape(words, kvm=False) == shape(command(rates=rates), kvm=False) != shape(command(), kvm=False)
