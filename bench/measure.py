"""Runs a command and tells its time, the most memory that its processes held at once, and the most disk that it used."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Failed", "Usage", "alternate", "cpu_seconds", "percentile", "run", "started", "tree", "used_bytes"]

_INTERVAL = 0.02
_GRACE = 20
"""Seconds that a command may take to undo what it did after SIGTERM."""


class Failed(Exception):
    """A measured command did not do its work; nothing may be said of its time."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run of a command took."""

    seconds: float
    """From its start to its end."""
    cpu: float
    """Seconds of user and system time, of all its processes that it waited for."""
    memory: int
    """Bytes: an upper bound of the most that its processes held at once, the sum of the high-water marks (VmHWM, which
    counts shared pages in each) of all that lived at the same moment."""
    disk: int
    """Bytes of the watched filesystem: the most used at any moment over what was used before."""
    output: str
    """Its standard output."""


def used_bytes(place: Path) -> int:
    """Bytes in use on the filesystem of ``place``."""
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def tree(root: int) -> Iterator[int]:
    """The process ``root`` and all below it, as /proc knows them now."""
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        with contextlib.suppress(OSError):  # it ended meanwhile
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())


def _high_water(pid: int) -> int:
    """VmHWM in bytes; 0 for a process that has ended or has no memory of its own."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


class _Watch(threading.Thread):
    """Samples processes and a filesystem until told to stop."""

    def __init__(self, roots: Callable[[], Sequence[int]], disk: Path | None) -> None:
        super().__init__(daemon=True)
        self._roots, self._disk = roots, disk
        self._before = used_bytes(disk) if disk else 0
        self._last = self._before
        self._end = threading.Event()
        self.memory = 0
        self.most_disk = 0

    def run(self) -> None:
        while not self._end.is_set():
            self._sample()
            self._end.wait(_INTERVAL)

    def _sample(self) -> None:
        pids = {pid for root in self._roots() for pid in tree(root)}
        self.memory = max(self.memory, sum(map(_high_water, pids)))
        if self._disk:
            # Two samples in a row: while FICLONERANGE shares an extent, XFS counts its blocks twice for an instant, though none
            # is written (xfs_reflink_remap_extent in fs/xfs/xfs_reflink.c reserves them, for quotas).
            now = used_bytes(self._disk)
            self.most_disk = max(self.most_disk, min(now, self._last) - self._before)
            self._last = now

    def stop(self) -> None:
        """Takes a last sample of the disk and ends."""
        self._end.set()
        self.join()
        if self._disk:
            self.most_disk = max(self.most_disk, used_bytes(self._disk) - self._before)


@contextlib.contextmanager
def started(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Starts ``command`` for the block, output and errors in pipes, or in ``log``; what of it runs at the block's end is ended.

    It has a session of its own: Ctrl-C ends the bench, which then ends it, in order, with all that it started.
    """
    with contextlib.nullcontext() if log is None else log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file or subprocess.PIPE,
            stderr=file or subprocess.PIPE,
            text=True,
            env=os.environ | dict(env or {}),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()  # nobody reads it any more: a command that still writes must not wait for that
    if process.poll() is not None:
        return
    below = list(tree(process.pid))
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    for pid in below:  # those that it has not ended itself
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU that a process has taken, with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(
    command: Sequence[str | Path],
    *,
    disk: Path | None = None,
    watch: bool = True,
    env: Mapping[str, str] | None = None,
    timeout: float = 900,
) -> Usage:
    """Runs ``command`` to its end.

    Args:
        command: Program and arguments.
        disk: A place on the filesystem whose use is watched.
        watch: Whether memory and disk are sampled beside it, which takes some of a core: not where time counts.
        env: Added to the environment.
        timeout: Seconds after which it has failed.

    Raises:
        Failed: It did not exit with 0 in time; the message ends with what it wrote to stderr.
    """
    words = list(map(str, command))
    pids: list[int] = []
    watcher = _Watch(lambda: pids, disk)
    before = os.times()
    begun = time.perf_counter()
    with started(words, env=env) as process:
        pids.append(process.pid)
        if watch:
            watcher.start()
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{' '.join(words)}: not done after {timeout} s") from error
        finally:
            seconds = time.perf_counter() - begun
            if watch:
                watcher.stop()
    if process.returncode != 0:
        raise Failed(f"{' '.join(words)}: exit status {process.returncode}: {errors.strip()[-1500:]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Usage(seconds, cpu, watcher.memory, watcher.most_disk, output)


def alternate(contenders: Mapping[str, Callable[[], Any]], *, rounds: int, discard: int = 1) -> dict[str, list[Any]]:
    """Runs the contenders in turn, A B A B, and keeps what each returned but for the first ``discard`` rounds.

    The first round touches disk blocks and page cache that later ones find warm (on many virtual disks a block's first
    write is several times slower), so it is nobody's measurement.
    """
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for number in range(discard + rounds):
        for name, measure in contenders.items():
            os.sync()  # nobody pays for what another left to be written
            value = measure()
            if number >= discard:
                results[name].append(value)
    return results


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
