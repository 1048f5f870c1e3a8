"""What every test may ask for: real daemons on loopback, a scratch XFS, and hypothesis' profiles.

A daemon belongs to one pytest process, keeps its files under one directory of /var/tmp (a real filesystem: overlayfs and
loop devices want one) and is ended by its pid when the process is done.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, print_blob=True)
settings.register_profile(
    "fuzz",
    deadline=None,
    max_examples=1_000_000,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    report_multiple_bugs=True,
)
settings.load_profile("ci")  # `--hypothesis-profile fuzz` comes later and wins


@dataclass(frozen=True, slots=True)
class Registry:
    """A docker-registry of its own: plain HTTP on loopback, deletes allowed."""

    host: str
    """``127.0.0.1:PORT``."""
    directory: Path
    """Its storage."""


@dataclass(frozen=True, slots=True)
class Containerd:
    """A containerd of its own."""

    socket: Path
    root: Path
    state: Path
    config: Path
    log: Path


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(log: Path) -> str:
    """The end of a daemon's log, for a failure's message."""
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""


@contextlib.contextmanager
def daemon(command: list[str], log: Path, *, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a daemon for the block: its own process group, output to ``log``, ended by its pid."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=os.environ | (env or {})
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # shims and helpers that it left in its session


def wait_for(what: str, ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, *, timeout: float = 30) -> None:
    """Waits until ``ready()``; a daemon that ended or is late fails the test with the end of its log."""
    end = time.monotonic() + timeout
    while not ready():
        assert process.poll() is None, f"{what} ended with {process.returncode}: {tail(log)}"
        assert time.monotonic() < end, f"{what} not ready after {timeout} s: {tail(log)}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def daemon_directory() -> Iterator[Path]:
    """A directory on a real filesystem (pytest's own may be a tmpfs) for what daemons keep."""
    directory = Path(tempfile.mkdtemp(prefix="castoff-tests-", dir="/var/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def registry(daemon_directory: Path) -> Iterator[Registry]:
    """A real docker-registry, empty at first."""
    directory = daemon_directory / "registry"
    directory.mkdir()
    config, log, port = directory / "config.yml", directory / "log", free_port()
    config.write_text(
        "version: 0.1\n"
        "log: {level: warn}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'data'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with daemon(["docker-registry", "serve", str(config)], log) as process:
        wait_for("docker-registry", answers, process, log)
        yield Registry(f"127.0.0.1:{port}", directory / "data")


@pytest.fixture(scope="session")
def containerd(daemon_directory: Path) -> Iterator[Containerd]:
    """A real containerd with its own root, state and socket, without CRI."""
    directory = daemon_directory / "containerd"
    directory.mkdir()
    found = Containerd(directory / "sock", directory / "root", directory / "state", directory / "config.toml", directory / "log")
    found.config.write_text(
        "version = 2\n"
        f'root = "{found.root}"\nstate = "{found.state}"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{found.socket}"\n'
        f'[ttrpc]\naddress = "{directory / "ttrpc"}"\n'
        f'[plugins."io.containerd.internal.v1.opt"]\npath = "{directory / "opt"}"\n'
    )

    def answers() -> bool:
        return (
            found.socket.exists()
            and subprocess.run(["ctr", "--address", str(found.socket), "version"], capture_output=True, timeout=10).returncode
            == 0
        )

    with daemon(["containerd", "--config", str(found.config)], found.log) as process:
        wait_for("containerd", answers, process, found.log)
        yield found


@pytest.fixture(scope="session")
def xfs_mount(daemon_directory: Path) -> Iterator[Path]:
    """An 8 GiB XFS with reflinks on a sparse loop file."""
    image, mount = daemon_directory / "xfs.img", daemon_directory / "xfs"
    mount.mkdir()
    with image.open("xb") as file:
        file.truncate(8 << 30)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
def scratch_xfs(xfs_mount: Path) -> Iterator[Path]:
    """A fresh directory on XFS, gone after the test."""
    directory = Path(tempfile.mkdtemp(dir=xfs_mount))
    yield directory
    shutil.rmtree(directory)
