"""A monitor's process: started detached from us, found again by pid and start time, waited for, ended."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castoff.errors import Unavailable, Unsupported
from castoff.vmm.settings import VmmSettings

__all__ = ["STATUS_UNKNOWN", "MonitorProcess", "Owner", "last_lines", "owner_for", "spawn", "user_ids"]

STATUS_UNKNOWN: Final = -1
"""Exit status of a monitor that an earlier process started: the kernel tells it to the parent only."""


class _Child:
    """A monitor that this process started, and that it alone can reap."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen


_Key = tuple[int, int]
_running: dict[_Key, _Child] = {}
"""Kept until they are reaped: a Popen that is dropped sooner complains."""
_known: weakref.WeakValueDictionary[_Key, _Child] = weakref.WeakValueDictionary()
"""Kept as long as anybody has a handle, so that each handle's ``wait`` tells the status."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The user and group that a monitor runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def user_ids(machine_id: str, settings: VmmSettings) -> Iterator[int]:
    """The user ids that a machine may have, the one first that it should get where no other machine has it: from one start to the
    next it keeps what it has. Empty where monitors run as ourselves."""
    if os.geteuid() == 0 and settings.own_user:
        first = zlib.crc32(machine_id.encode()) % settings.uid_count
        for step in range(settings.uid_count):
            yield settings.first_uid + (first + step) % settings.uid_count


def owner_for(machine_id: str, settings: VmmSettings, user: int | None = None) -> Owner | None:
    """Who a machine's monitor runs as, without a name, a home or a group but its own; None: we are not root, so as ourselves.

    Args:
        machine_id: The machine's.
        settings: The machines' settings.
        user: The user id that was set aside for it; None: the first that it may have.
    """
    first = next(user_ids(machine_id, settings), None)
    if first is None:
        return None
    number = first if user is None else user
    return Owner(number, number)


def _start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since the host's boot (proc(5), stat field 22); None: it is gone or dead."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold anything
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class MonitorProcess:
    """A process by a descriptor (pidfd), so that no other process can ever be meant."""

    def __init__(self, pid: int, started: int, descriptor: int) -> None:
        self.pid = pid
        self.started = started
        self._descriptor = descriptor
        self._child = _known.get((pid, started))

    @classmethod
    def find(cls, pid: int, started: int) -> MonitorProcess | None:
        """The process of that pid and start time; None when it has ended."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return None
        if _start_time(pid) != started:
            os.close(descriptor)
            return None
        return cls(pid, started, descriptor)

    def __del__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """Closes the descriptor. When the end is known, not when Python comes round to it: handles are in cycles."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def wait(self) -> int:
        """Waits for its end; its exit status (-N: signal N, unless it is not ours: ``STATUS_UNKNOWN``)."""
        await self._ended()
        if self._child is None:
            return STATUS_UNKNOWN
        _running.pop((self.pid, self.started), None)
        return self._child.popen.wait()

    async def _ended(self) -> None:
        if self._descriptor < 0:
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        # A second waiter on the same descriptor would take the first one's place in the loop.
        descriptor = os.dup(self._descriptor)
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._forget()

    def allow_files(self, size: int) -> None:
        """Lets its files grow to ``size`` bytes, where it was started with less.

        Raises:
            Unsupported: We may not.
            Unavailable: It has ended.
        """
        if _start_time(self.pid) != self.started:
            raise Unavailable(f"process {self.pid} has ended")
        try:
            # Read there, since prlimit(2) shows those of another user to CAP_SYS_RESOURCE alone.
            limits = Path(f"/proc/{self.pid}/limits").read_text().splitlines()
            allowed = next(line for line in limits if line.startswith("Max file size")).split()[-2]
            if allowed != "unlimited" and int(allowed) < size:
                resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, size))
        except (ProcessLookupError, FileNotFoundError) as error:
            raise Unavailable(f"process {self.pid} has ended") from error
        except PermissionError as error:
            raise Unsupported(
                f"the VMM's files may have {allowed} bytes, which only CAP_SYS_RESOURCE can change", hint="restart the machine"
            ) from error

    async def kill(self) -> None:
        """Ends it now, and waits until it is gone."""
        try:
            if self._descriptor >= 0:
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise Unavailable(
                f"process {self.pid} cannot be ended: {error.strerror}", hint="it belongs to another user"
            ) from error
        await self.wait()


def spawn(
    command: Sequence[str],
    *,
    log: Path,
    owner: Owner | None,
    inherit: Sequence[int] = (),
    directory: Path = Path("/"),
    largest_file: int | None = None,
    gate: int | None = None,
) -> MonitorProcess:
    """Starts a monitor in a session of its own, so that our terminal's signals and our end do not reach it.

    Args:
        command: Program and arguments.
        log: Where its stdout and stderr go.
        owner: Who it runs as; None: us.
        inherit: Descriptors that it gets, under the same numbers.
        directory: Where it starts.
        largest_file: Bytes that no file of its may grow beyond.
        gate: A descriptor from which it waits for a line before its program is executed; where that is closed, it ends.

    Raises:
        Unsupported: There is no such program.
        Unavailable: It cannot be started.
    """
    command = _staged(command, largest_file, gated=gate is not None)
    try:
        with log.open("wb") as output:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if gate is None else gate,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                pass_fds=inherit,
                start_new_session=True,
                restore_signals=False,  # SIGXFSZ stays ignored: a file at its limit is an error to handle, no death
                user=None if owner is None else owner.uid,
                group=None if owner is None else owner.gid,
                extra_groups=None if owner is None else owner.groups,
            )
    except FileNotFoundError as error:
        raise Unsupported(f"{command[0]} is not installed", hint="`castoff doctor` tells how to get it") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{command[0]} cannot be started: {error}", hint="see `castoff doctor`") from error
    started = _start_time(popen.pid) or 0
    _running[popen.pid, started] = _known[popen.pid, started] = _Child(popen)
    return MonitorProcess(popen.pid, started, os.pidfd_open(popen.pid))


def _staged(command: Sequence[str], largest_file: int | None, *, gated: bool) -> Sequence[str]:
    """The command behind what has to happen between fork and exec, which a shell does: Python must not run there."""
    stages = ["read -r _ || exit"] if gated else []
    if largest_file is not None:
        # A limit of the child's: prlimit(2) from outside wants CAP_SYS_RESOURCE once the user has changed. Blocks of 512 bytes
        # (POSIX).
        stages.append(f"ulimit -f {-(-largest_file // 512)}")
    if not stages:
        return command
    return ["/bin/sh", "-c", " && ".join([*stages, 'exec "$@" </dev/null']), "sh", *command]


def last_lines(log: Path, count: int = 5, limit: int = 4096) -> str:
    """The last lines of a log, for an error message; what could command a terminal is replaced."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            text = file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    return " | ".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines[-count:])
