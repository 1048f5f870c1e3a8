"""Control groups: what the host's kernel lets a machine's VMM take, and what it took.

One group a machine, ``castoff-KEY/MACHINE-RANDOM``, where KEY stands for the state directory: a group that has no record there is
nobody's. Under cgroup v2 that is below the hierarchy's root and not in the agent's own unit: VMMs outlive the agent, and a group
with controllers for its children takes no process, so systemd could not start the next agent in it. Under v1, which some hosts
still have, it is below whatever group we are in, once for each controller.

Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/, cgroups(7). All of it blocks, a move for several milliseconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from castoff.errors import Unavailable, Unsupported

__all__ = ["CONTROLLERS", "Group", "Limits", "Tree", "Usage", "find_tree"]

CONTROLLERS: Final = ("cpu", "memory", "pids")
_ACCOUNT: Final = "cpuacct"
"""v1 counts processor time in a controller of its own."""
_PERIOD: Final = 100_000
_DIES: Final = 2.0
"""Seconds in which what is killed in a group is gone from it."""
_AGAIN: Final = 0.002
_LEAST_QUOTA: Final = 1000
_BATCHES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one VMM may take.

    Attributes:
        cpus: CPUs, all of its threads together.
        weight: Its share against others where CPUs are short, 1 to 10000; 100 is what anybody has.
        memory: Bytes, the guest's with the VMM's own.
        swap: Bytes of swap on top.
        pids: Processes and threads.
    """

    cpus: float
    weight: int
    memory: int
    swap: int
    pids: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a group has taken; -1: this kernel does not tell (0 of times).

    Attributes:
        cpu_seconds: Of processor time, since it was made.
        memory: Bytes now, its page cache too.
        memory_peak: The most there were.
        pids: Processes and threads now.
        memory_kills: How many of its processes were killed for want of memory.
        throttled_seconds: How long it was held back though it had something to do, since it was made; of a group's own limit.
    """

    cpu_seconds: float
    memory: int
    memory_peak: int
    pids: int
    memory_kills: int
    throttled_seconds: float


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One group; as a value, so that a record of it finds it again.

    Attributes:
        places: Its directory, for each controller.
        unified: Whether it is of cgroup v2.
    """

    places: dict[str, str]
    unified: bool

    @property
    def name(self) -> str:
        """Its own name among those of the same tree."""
        return Path(next(iter(self.places.values()))).name

    def set_limits(self, limits: Limits) -> None:
        """Writes limits down.

        Raises:
            OSError: The kernel refuses.
        """
        write = self._write_unified if self.unified else self._write_legacy
        write(limits)

    def add(self, pid: int) -> None:
        """Moves a process there, with all of its threads.

        Raises:
            OSError: The kernel refuses, or the process has ended.
        """
        for directory in self._directories():
            (directory / "cgroup.procs").write_text(str(pid))

    def usage(self) -> Usage:
        """What it has taken."""
        if self.unified:
            return Usage(
                cpu_seconds=max(0, self._counted("cpu", "cpu.stat", "usage_usec")) / 1e6,
                memory=self._number("memory", "memory.current"),
                memory_peak=self._number("memory", "memory.peak"),
                pids=self._number("pids", "pids.current"),
                memory_kills=self._counted("memory", "memory.events", "oom_kill"),
                throttled_seconds=max(0, self._counted("cpu", "cpu.stat", "throttled_usec")) / 1e6,
            )
        return Usage(
            cpu_seconds=max(0, self._number(_ACCOUNT, "cpuacct.usage")) / 1e9,
            memory=self._number("memory", "memory.usage_in_bytes"),
            memory_peak=self._number("memory", "memory.max_usage_in_bytes"),
            pids=self._number("pids", "pids.current"),
            memory_kills=self._counted("memory", "memory.oom_control", "oom_kill"),
            throttled_seconds=max(0, self._counted("cpu", "cpu.stat", "throttled_time")) / 1e9,
        )

    def killed_for(self) -> Literal["", "limit", "host"]:
        """Whose want of memory one of its processes was killed for: at its own limit, or because the whole host had none."""
        if self.usage().memory_kills <= 0:
            return ""
        if self.unified:
            return "limit" if self._counted("memory", "memory.events", "oom") > 0 else "host"
        # v1 does not tell: Linux 6.18 has given up counting in memory.failcnt. What is charged comes in batches of pages.
        return "limit" if self.usage().memory_peak >= self.memory_limit() - _BATCHES else "host"

    def memory_limit(self) -> int:
        """Bytes; -1: none is told."""
        return self._number("memory", "memory.max" if self.unified else "memory.limit_in_bytes")

    def exists(self) -> bool:
        """Whether it is there, in part at least."""
        return any(directory.exists() for directory in self._directories())

    def remove(self) -> None:
        """Kills what is in it and removes it, and its tree where it was the last. Idempotent.

        Raises:
            Unavailable: What is in it does not die.
        """
        until = time.monotonic() + _DIES
        for directory in self._directories():
            while not _removed(directory):
                _kill(directory)
                if time.monotonic() > until:
                    raise Unavailable(f"control group {directory} has processes that do not die", hint="see dmesg")
                time.sleep(_AGAIN)
            _removed(directory.parent)

    def _directories(self) -> list[Path]:
        return [Path(place) for place in dict.fromkeys(self.places.values())]

    def _write_unified(self, limits: Limits) -> None:
        self._set("cpu", "cpu.max", f"{_quota(limits)} {_PERIOD}")
        self._set("cpu", "cpu.weight", limits.weight)
        self._set("memory", "memory.max", limits.memory)
        self._set("memory", "memory.swap.max", limits.swap, wanted=False)  # not there without swap in the kernel
        self._set("memory", "memory.oom.group", 1, wanted=False)
        self._set("pids", "pids.max", limits.pids)

    def _write_legacy(self, limits: Limits) -> None:
        self._set("cpu", "cpu.cfs_period_us", _PERIOD)
        self._set("cpu", "cpu.cfs_quota_us", _quota(limits))
        self._set("cpu", "cpu.shares", max(2, limits.weight * 1024 // 100))
        self._set("memory", "memory.limit_in_bytes", limits.memory)
        self._set("memory", "memory.memsw.limit_in_bytes", limits.memory + limits.swap, wanted=False)
        self._set("pids", "pids.max", limits.pids)

    def _set(self, controller: str, file: str, value: int | str, *, wanted: bool = True) -> None:
        if controller not in self.places:
            return
        path = Path(self.places[controller], file)
        if wanted or path.exists():
            path.write_text(str(value))

    def _text(self, controller: str, file: str) -> str:
        with contextlib.suppress(OSError, KeyError):
            return Path(self.places[controller], file).read_text()
        return ""

    def _number(self, controller: str, file: str) -> int:
        text = self._text(controller, file).strip()
        return int(text) if text.isdigit() else -1

    def _counted(self, controller: str, file: str, name: str) -> int:
        for line in self._text(controller, file).splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
        return -1


@dataclass(frozen=True, slots=True)
class Tree:
    """castoff's part of the host's groups.

    Attributes:
        bases: The directory that machines' groups lie in, for each controller.
        unified: Whether it is of cgroup v2.
        root: Under v2, the group from which on controllers are handed down.
    """

    bases: Mapping[str, Path]
    unified: bool
    root: Path

    @property
    def missing(self) -> tuple[str, ...]:
        """Controllers that this host does not give."""
        return tuple(name for name in CONTROLLERS if name not in self.bases)

    def make(self, machine_id: str) -> Group:
        """A new group for a start of a machine. Without limits yet.

        Raises:
            Unsupported: The kernel does not let us.
        """
        name = f"{machine_id}-{secrets.token_hex(4)}"  # anew for each start: what a sweep finds of the last one is not this
        group = Group({controller: str(base / name) for controller, base in self.bases.items()}, self.unified)
        try:
            for attempt in (1, 2):
                try:
                    self._make_bases()
                    for place in dict.fromkeys(group.places.values()):
                        Path(place).mkdir(exist_ok=attempt == 2)
                    break
                except FileNotFoundError:  # the last machine's end removed the base just now
                    if attempt == 2:
                        raise
        except OSError as error:
            with contextlib.suppress(Unavailable):
                group.remove()
            raise _refused(error, self.root) from error
        return group

    def groups(self) -> list[Group]:
        """Those that are there."""
        names: dict[str, None] = {}
        for base in self.bases.values():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                names |= dict.fromkeys(entry.name for entry in os.scandir(base) if entry.is_dir())
        return [
            Group({controller: str(base / name) for controller, base in self.bases.items()}, self.unified)
            for name in sorted(names)
        ]

    def whole(self) -> Group:
        """The group of all machines together; it may not be there."""
        return Group({controller: str(base) for controller, base in self.bases.items()}, self.unified)

    def _make_bases(self) -> None:
        for base in dict.fromkeys(self.bases.values()):
            if self.unified:
                _hand_down(self.root, self.bases)
            base.mkdir(exist_ok=True)
            if self.unified:
                _hand_down(base, self.bases)


def find_tree(machines: Path, *, parent: Path | None = None, process: Path = Path("/proc/self")) -> Tree:
    """Where groups of this host's machines belong. Makes nothing.

    Args:
        machines: The directory of the machines' records, which stands for the state directory.
        parent: A group of cgroup v2 to begin at, for hosts that delegate one; None: the hierarchy's root.
        process: Ours, in a proc filesystem.

    Raises:
        Unsupported: There are no control groups here that we could use; it says why.
    """
    key = f"castoff-{zlib.crc32(os.fsencode(machines.resolve())):08x}"
    try:
        mounts = list(_mounts(process))
    except OSError as error:
        raise Unsupported(f"no /proc/self/mountinfo: {error.strerror}", hint="mount /proc") from error
    root = parent or next((mount for kind, _, mount, _ in mounts if kind == "cgroup2"), None)
    if root is not None:
        try:
            offered = (root / "cgroup.controllers").read_text().split()
        except OSError as error:
            raise _refused(error, root) from error
        if given := [name for name in CONTROLLERS if name in offered]:
            return Tree(dict.fromkeys(given, root / key), True, root)
    bases = _legacy(mounts, process, key)
    if not any(name in bases for name in CONTROLLERS):
        raise Unsupported(
            "no control groups are mounted here" if root is None else f"{root} offers none of {', '.join(CONTROLLERS)}",
            hint="mount -t cgroup2 none /sys/fs/cgroup, or vmm.limits.parent: a group that was delegated",
        )
    return Tree(bases, False, next(iter(bases.values())).parent)


def _mounts(process: Path) -> Iterable[tuple[str, str, Path, list[str]]]:
    """Kind, root within the filesystem, place, and options of its own, of each mount of control groups (proc(5))."""
    for line in (process / "mountinfo").read_text().splitlines():
        words = line.split()
        separator = words.index("-", 6)
        if words[separator + 1] in ("cgroup", "cgroup2"):
            yield words[separator + 1], words[3], Path(words[4]), words[separator + 3].split(",")


def _legacy(mounts: Iterable[tuple[str, str, Path, list[str]]], process: Path, key: str) -> dict[str, Path]:
    """The places of v1's controllers, below the groups that we are in: there a process may be beside a group."""
    own: dict[str, str] = {}
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    bases: dict[str, Path] = {}
    for kind, root, mount, options in mounts:
        for name in (*CONTROLLERS, _ACCOUNT):
            if kind == "cgroup" and name in options and name in own:
                bases[name] = mount / own[name].removeprefix(root).lstrip("/") / key
    return bases


def _hand_down(directory: Path, controllers: Iterable[str]) -> None:
    """Gives a group's children controllers; where nothing is missing nothing is written."""
    file = directory / "cgroup.subtree_control"
    if missing := set(controllers) - set(file.read_text().split()):
        file.write_text(" ".join(f"+{name}" for name in sorted(missing)))


def _quota(limits: Limits) -> int:
    return max(_LEAST_QUOTA, int(limits.cpus * _PERIOD))


def _removed(directory: Path) -> bool:
    """Whether it is gone; one with processes or groups in it stays."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise Unavailable(f"control group {directory} cannot be removed: {error.strerror}") from error
        return False
    return True


def _kill(directory: Path) -> None:
    """Kills all that is in a group; whoever forks meanwhile is met the next time."""
    with contextlib.suppress(OSError):
        for pid in (directory / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _refused(error: OSError, root: Path) -> Unsupported:
    hints = {
        errno.EROFS: "mount it writable; in a container, delegate a group and name it in vmm.limits.parent",
        errno.EACCES: "run as root, or name a group that is ours in vmm.limits.parent",
        errno.EPERM: "run as root, or name a group that is ours in vmm.limits.parent",
        errno.EBUSY: "processes are in that group itself; name one without in vmm.limits.parent",
        errno.EOPNOTSUPP: "that group is threaded; name another one in vmm.limits.parent",
    }
    return Unsupported(
        f"control group {error.filename or root} cannot be used: {error.strerror}",
        hint=hints.get(error.errno or 0, "see cgroups(7)"),
    )
