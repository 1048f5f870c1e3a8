"""When keeper and hydrator are both dead: descriptors are taken back from the monitor, or the machine ends.

A monitor that inherited its group's descriptor cannot outrun the group: its reads wait. Whoever comes next takes the two
descriptors out of it (pidfd_getfd(2)) and goes on. A monitor that did not inherit them (it was jailed, or the descriptor was
lost in it) is another matter: the kernel let its reads through when the group's last holder died, and they found zeros. It is
killed, and its clone is thrown away, since the guest may have acted on what it read.

The group is told by the mark that the kernel shows in its fdinfo (proc(5)), the descriptor for filling by its flags
(castoff.hydrate.descriptors.FILL_FLAGS).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castoff.errors import Unavailable
from castoff.hydrate.descriptors import close_all

__all__ = ["end_writers", "take_back"]

_PIDFD_GETFD: Final = 438
"""The same on every architecture, as all system calls since Linux 5.1."""
_DEATH: Final = 30.0
"""Seconds that a killed process may take to end: its memory is given back first."""


def take_back(clone: Path) -> tuple[int, int] | None:
    """The group's and the fill descriptor of a marked clone, from whatever process has both; None where none has.

    Returns:
        Descriptors of our own, close-on-exec.

    Raises:
        OSError: The clone cannot be looked at.
    """
    file = _File.of(clone)
    for pid in _others():
        with _process(pid) as process:
            if process is None:
                continue
            found = {kind: number for number, kind in _kinds(pid, file)}
            if {"group", "fill"} <= found.keys():
                taken = _get(process, found["group"]), _get(process, found["fill"])
                if _are_right(taken, file):
                    return taken
                close_all([number for number in taken if number >= 0])
    return None


def end_writers(*files: Path) -> list[int]:
    """Kills every process that has one of these open for writing, but for filling, and waits until they are gone.

    Args:
        files: One that is not there is nobody's.

    Returns:
        The processes that were there.

    Raises:
        OSError: A file cannot be looked at.
        Unavailable: One cannot be killed, or does not end.
    """
    targets = []
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            targets.append(_File.of(file))
    ended = []
    for pid in _others():
        with _process(pid) as process:
            if process is not None and any(kind == "writer" for target in targets for _, kind in _kinds(pid, target)):
                _kill(pid, process)
                ended.append(pid)
    return ended


@dataclass(frozen=True, slots=True)
class _File:
    """A file, as others' descriptors show it.

    Attributes:
        status: What stat says.
        mark: How a group's fdinfo names it, one line a mark: ``fanotify ino:60a09 sdev:fe00000 ...``
    """

    status: os.stat_result
    mark: str

    @classmethod
    def of(cls, path: Path) -> _File:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            mount = re.search(r"^mnt_id:\t(\d+)$", Path(f"/proc/self/fdinfo/{descriptor}").read_text(), re.MULTILINE)
        finally:
            os.close(descriptor)
        # The filesystem's device, which mountinfo has; stat's is the subvolume's, on btrfs. 12 bits major, 20 bits minor.
        assert mount is not None
        device = re.search(rf"^{mount[1]} \d+ (\d+):(\d+) ", Path("/proc/self/mountinfo").read_text(), re.MULTILINE)
        number = status.st_dev if device is None else os.makedev(int(device[1]), int(device[2]))
        return cls(status, f"ino:{status.st_ino:x} sdev:{os.major(number) << 20 | os.minor(number):x}")


def _others() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and int(path.name) != os.getpid()]


@contextmanager
def _process(pid: int) -> Iterator[int | None]:
    """A pidfd, opened before anything is looked at, so that what is done is done to the process that was looked at."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # it has ended
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _kinds(pid: int | str, file: _File) -> Iterator[tuple[int, str]]:
    """(descriptor, what it is to the file: its ``group``, for its ``fill``ing, or a ``writer``), of a process."""
    process = Path(f"/proc/{pid}")
    try:
        links = list((process / "fd").iterdir())
    except OSError:  # it has ended, or is not ours to look at: nor is the file then, nor could it be killed
        return
    for link in links:
        with contextlib.suppress(OSError):  # closed meanwhile
            kind = _kind((process / "fdinfo" / link.name).read_text(), link, file)
            if kind is not None:
                yield int(link.name), kind


def _kind(info: str, link: Path, file: _File) -> str | None:
    if re.search(rf"^fanotify {file.mark} ", info, re.MULTILINE):
        return "group"
    shown = re.search(r"^ino:\t(\d+)$", info, re.MULTILINE)  # from 5.14 on: spares the look at most files
    if shown is not None and int(shown[1]) != file.status.st_ino:
        return None
    flags = re.search(r"^flags:\t(\d+)$", info, re.MULTILINE)
    if flags is None or int(flags[1], 8) & os.O_ACCMODE == os.O_RDONLY or not os.path.samestat(link.stat(), file.status):
        return None
    return "fill" if int(flags[1], 8) & os.O_NOATIME else "writer"


def _get(process: int, number: int) -> int:
    """The descriptor ``number`` of a process as one of ours, close-on-exec; -1 where it is not given.

    Refused by ptrace's rules: CAP_SYS_PTRACE is wanted where the process is another user's, and Yama may forbid it to all.
    """
    return int(ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, number, 0))


def _are_right(taken: tuple[int, int], file: _File) -> bool:
    """Whether what was taken is what was seen: the other process may have closed it, and its number may be another file's."""
    if min(taken) < 0:
        return False
    kinds = dict(_kinds("self", file))
    return (kinds.get(taken[0]), kinds.get(taken[1])) == ("group", "fill")


def _kill(pid: int, process: int) -> None:
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise Unavailable(
            f"process {pid} reads an incomplete rootfs and cannot be ended", hint="end it: it reads zeros"
        ) from error
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    deadline = time.monotonic() + _DEATH
    while not waiting.poll(1000):
        if time.monotonic() > deadline:
            raise Unavailable(f"process {pid} reads holes of an incomplete rootfs and does not end")
