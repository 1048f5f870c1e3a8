"""Real daemons for tests and benches, each on loopback with its own files, ended by its pid.

Their directories must be on a real filesystem (/var/tmp, where /tmp may be a tmpfs): overlayfs and loop devices want one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Containerd", "Registry", "containerd", "daemon", "free_port", "own_mounts", "registry", "wait_for", "xfs"]


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

    pid: int
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


def own_mounts() -> list[str]:
    """The command before a command that mounts what nobody else shall see.

    ``unshare`` alone makes every mount private from "/" on, which fails in a chroot whose "/" is no mount (EINVAL).
    """
    rooted = any(line.split()[4] == "/" for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return ["unshare", "--mount", "--propagation", "private" if rooted else "unchanged"]


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


@contextlib.contextmanager
def registry(directory: Path, *, port: int = 0) -> Iterator[Registry]:
    """A docker-registry for the block; what ``directory`` held before it serves again."""
    directory.mkdir(parents=True, exist_ok=True)
    config, log, port = directory / "config.yml", directory / "log", port or free_port()
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


@contextlib.contextmanager
def containerd(directory: Path, *, extra: str = "") -> Iterator[Containerd]:
    """A containerd without CRI for the block.

    Args:
        directory: Its root, state, socket and log.
        extra: Added to its configuration (TOML), a proxy snapshotter for example.
    """
    directory.mkdir(parents=True, exist_ok=True)
    root, state, listen = directory / "root", directory / "state", directory / "sock"
    config, log = directory / "config.toml", directory / "log"
    config.write_text(
        "version = 2\n"
        f'root = "{root}"\nstate = "{state}"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{listen}"\n'
        f'[ttrpc]\naddress = "{directory / "ttrpc"}"\n'
        f'[plugins."io.containerd.internal.v1.opt"]\npath = "{directory / "opt"}"\n'
        f"{extra}"
    )
    version = ["ctr", "--address", str(listen), "version"]

    def answers() -> bool:
        return listen.exists() and subprocess.run(version, capture_output=True, timeout=10).returncode == 0

    with daemon(["containerd", "--config", str(config)], log) as process:
        wait_for("containerd", answers, process, log)
        yield Containerd(process.pid, listen, root, state, config, log)


@contextlib.contextmanager
def xfs(directory: Path, *, size: int = 8 << 30) -> Iterator[Path]:
    """An XFS with reflinks on a sparse loop file in ``directory``, mounted for the block."""
    directory.mkdir(parents=True, exist_ok=True)
    image, mount = directory / "xfs.img", directory / "xfs"
    mount.mkdir()
    with image.open("xb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        _unmount(mount)


def _unmount(mount: Path) -> None:
    """Unmounts, waiting for processes that are just ending, and for the kernel, which frees what they had after them; says who
    holds it where that does not help."""
    for _ in range(300):
        gc.collect()  # a failure's traceback may hold files of it open
        if subprocess.run(["umount", str(mount)], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"{mount} stays busy: {_holders(mount)}")


def _holders(mount: Path) -> list[str]:
    """Processes with a file of the mount open or mapped, and its name."""
    found = []
    for link in [
        *Path("/proc").glob("[0-9]*/fd/*"),
        *Path("/proc").glob("[0-9]*/cwd"),
        *Path("/proc").glob("[0-9]*/map_files/*"),
    ]:
        try:
            target = str(link.readlink())
        except OSError:  # it ended meanwhile
            continue
        if target.startswith(f"{mount}/") or target == str(mount):
            found.append(f"{'/'.join(link.parts[2:])} {(Path('/proc') / link.parts[2] / 'cmdline').read_bytes()[:80]!r} {target}")
    return found
