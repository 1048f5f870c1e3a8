"""A region on one machine: hosts and a registry, each in a network namespace of its own, on one switch, their links shaped (tbf).

    with region(directory, storage, hosts=8) as found:
        found.registry            # HOST:PORT of the registry, the same from every host
        found.sent()              # bytes that the registry has sent so far, headers included
        found.hosts[0].within(...)  # a command line that runs in the host's network

Nothing is in the network of whoever starts it: no address of the region can be one of the machine's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.daemons import daemon, wait_for
from tests.fleet_authority import Authority

__all__ = ["HOST_MEGABITS", "REGISTRY_MEGABITS", "Region", "RegionHost", "in_memory", "region"]

HOST_MEGABITS, REGISTRY_MEGABITS = 1000, 200
_PREFIX = "castoff-region-"
_NETWORK = "10.214.0"
_REGISTRY, _FIRST = 2, 11
"""Last numbers of addresses."""
_PORT, _PEER_PORT, _NATS_PORT = 5000, 4290, 4222
_BURST_SECONDS = 0.004
"""Of the rate, that may pass at once: the kernel's timer must wake more often than that (HZ is 250 or more)."""
_LEAST_BURST = 96 << 10
_END_SECONDS = 10


@dataclass(frozen=True, slots=True)
class RegionHost:
    """A host."""

    number: int
    namespace: str
    directory: Path
    """Its files; on a filesystem that reflinks."""
    registry: str
    urls: tuple[str, ...]
    """Of all hosts of the region, its own among them."""
    authority: Authority

    @property
    def state(self) -> Path:
        """Its state directory."""
        return self.directory / "state"

    @property
    def url(self) -> str:
        """What the others ask."""
        return self.urls[self.number]

    def within(self, *command: str | Path) -> list[str]:
        """A command in the host's network. ``ip netns exec`` would give it mounts of its own too, and hide the rootfs."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *map(str, command)]

    def settings(self, *, peers: bool = True, name: str = "castoff", nats: str = "") -> Path:
        """A configuration file.

        Args:
            peers: Whether other hosts are asked, and may ask.
            name: Of the file.
            nats: URL of the NATS server where hosts meet; empty: each has the list of all.
        """
        path = self.directory / f"{name}-{'region' if peers else 'alone'}.toml"
        path.write_text(
            f'state = "{self.state}"\nimage.insecure_registries = ["{self.registry}"]\nstore.backing = "native"\n'
            f'vmm.qemu.accelerator = "tcg"\nmachine.network = "none"\nagent.listen = ""\n'
            f"hydrate.background_after = 1.0\n" + (self._peers(nats) if peers else "")
        )
        return path

    def _peers(self, nats: str) -> str:
        mine = self.authority.settings(f"host-{self.number}", urllib.parse.urlsplit(self.url).netloc)
        files = f'certificate = "{mine.certificate}"\nkey = "{mine.key}"\nauthority = "{mine.authority}"\n'
        meeting = f'[fleet]\nurls = ["{nats}"]\nhost = "host-{self.number}"\n{files}' if nats else ""
        urls = "" if nats else f"urls = {json.dumps(self.urls)}\n"
        return f'{meeting}[peers]\n{urls}url = "{self.url}"\nlisten = "{mine.listen}"\n{files}'


@dataclass(frozen=True, slots=True)
class Region:
    """The hosts, and what they share."""

    hosts: tuple[RegionHost, ...]
    registry: str
    """``ADDRESS:PORT``."""
    switch: str
    registry_namespace: str
    authority: Authority

    @property
    def nats(self) -> str:
        """Where a NATS server beside the registry would be (:meth:`serving_nats`)."""
        return f"tls://{_NETWORK}.{_REGISTRY}:{_NATS_PORT}"

    @contextlib.contextmanager
    def serving_nats(self, directory: Path) -> Iterator[None]:
        """A NATS server with JetStream, for the block; hosts show it the fleet's certificates."""
        mine = self.authority.settings("nats", address=f"{_NETWORK}.{_REGISTRY}")
        config, log = directory / "nats.conf", directory / "nats.log"
        config.write_text(
            f'server_name: region\nlisten: "0.0.0.0:{_NATS_PORT}"\njetstream {{ store_dir: "{directory / "nats"}" }}\n'
            f'tls {{ cert_file: "{mine.certificate}", key_file: "{mine.key}", ca_file: "{mine.authority}", verify: true }}\n'
        )
        command = ["nsenter", f"--net=/run/netns/{self.registry_namespace}", "nats-server", "-c", str(config)]
        with daemon(command, log) as process:
            wait_for("nats-server", lambda: "Server is ready" in log.read_text(errors="replace"), process, log)
            yield

    def sent(self) -> int:
        """Bytes that the registry has sent."""
        return _counter(self.registry_namespace, "cable", "tx")

    def given(self) -> list[int]:
        """Bytes that each host has sent."""
        return [_counter(host.namespace, "cable", "tx") for host in self.hosts]

    def shape(self, registry: int, host: int) -> None:
        """Sets the rates of the registry's link and of each host's, both ways. Mbit/s."""
        ends = [(self.registry_namespace, "registry", registry)]
        ends += [(one.namespace, f"host{one.number}", host) for one in self.hosts]
        for namespace, port, megabits in ends:
            _shape(namespace, "cable", megabits)
            _shape(self.switch, port, megabits)

    def cut(self, number: int, *, off: bool) -> None:
        """Pulls a host's cable, or the registry's (-1), or puts it back."""
        port = "registry" if number < 0 else f"host{number}"
        _run("ip", "-n", self.switch, "link", "set", port, "down" if off else "up")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _counter(namespace: str, device: str, way: str) -> int:
    told = json.loads(_run("ip", "-n", namespace, "-s", "-s", "-j", "link", "show", "dev", device))
    return int(told[0]["stats64"][way]["bytes"])


def _shape(namespace: str, device: str, megabits: int) -> None:
    burst = max(int(megabits * 1e6 / 8 * _BURST_SECONDS), _LEAST_BURST)
    shaped = ["root", "tbf", "rate", f"{megabits}mbit", "burst", str(burst), "latency", "50ms"]
    _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, *shaped)


def _join(switch: str, namespace: str, port: str, number: int, megabits: int) -> None:
    """A namespace with a cable to the switch."""
    _run("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "cable", "netns", namespace)
    _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
    _run("ip", "-n", namespace, "addr", "add", f"{_NETWORK}.{number}/24", "dev", "cable")
    for device in ("cable", "lo"):
        _run("ip", "-n", namespace, "link", "set", device, "up")
    _shape(namespace, "cable", megabits)
    _shape(switch, port, megabits)


def _end(namespace: str) -> None:
    """Ends what still runs in a namespace of ours (hydrators wait for more to do), and deletes it; its cables go with it."""
    deadline = time.monotonic() + _END_SECONDS
    while (pids := _run("ip", "netns", "pids", namespace).split()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)
    _run("ip", "netns", "delete", namespace)


def _sweep() -> None:
    """Clears away the regions whose maker was killed: processes, then namespaces."""
    for path in sorted(Path("/run/netns").glob(f"{_PREFIX}*")):
        if not Path("/proc", path.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            _end(path.name)
    for path in Path("/dev/shm").glob(f"{_PREFIX}*"):
        if not Path("/proc", path.name.removeprefix(_PREFIX)).exists():
            subprocess.run(["packaging/unmount", str(path)], check=True)
            shutil.rmtree(path)


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """A directory in memory for the block, for the hosts' files; a region that was killed leaves it to the next one."""
    _sweep()
    path = Path(f"/dev/shm/{_PREFIX}{os.getpid()}")
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def _namespace(name: str) -> Iterator[str]:
    _run("ip", "netns", "add", name)
    try:
        yield name
    finally:
        _end(name)


@contextlib.contextmanager
def region(directory: Path, storage: Path, *, hosts: int, files: Path | None = None) -> Iterator[Region]:
    """The region for the block.

    Args:
        directory: For configuration and logs.
        storage: What another docker-registry stores at: both serve the same.
        hosts: How many.
        files: Where the hosts' files are; ``directory`` by default.
    """
    _sweep()
    prefix = f"{_PREFIX}{os.getpid()}"
    registry = f"{_NETWORK}.{_REGISTRY}:{_PORT}"
    urls = tuple(f"https://{_NETWORK}.{_FIRST + number}:{_PEER_PORT}" for number in range(hosts))
    authority = Authority(directory, "region")
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_namespace(f"{prefix}-switch"))
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        there = stack.enter_context(_namespace(f"{prefix}-registry"))
        _join(switch, there, "registry", _REGISTRY, REGISTRY_MEGABITS)
        made = []
        for number in range(hosts):
            name = stack.enter_context(_namespace(f"{prefix}-{number}"))
            _join(switch, name, f"host{number}", _FIRST + number, HOST_MEGABITS)
            place = (files or directory) / f"host-{number}"
            place.mkdir(parents=True)
            made.append(RegionHost(number, name, place, registry, urls, authority))
        stack.enter_context(_registry(directory, storage, there))
        yield Region(tuple(made), registry, switch, there, authority)


@contextlib.contextmanager
def _registry(directory: Path, storage: Path, namespace: str) -> Iterator[None]:
    config, log = directory / "registry.yml", directory / "registry.log"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: ':{_PORT}'}}\n"
    )
    within: Sequence[str] = ["nsenter", f"--net=/run/netns/{namespace}"]

    def answers() -> bool:
        asked = subprocess.run([*within, "curl", "-sf", "-m", "5", f"http://127.0.0.1:{_PORT}/v2/"], capture_output=True)
        return asked.returncode == 0

    with daemon([*within, "docker-registry", "serve", str(config)], log) as process:
        wait_for("the region's registry", answers, process, log)
        yield
