"""What the guest init is told of a command: the settings record list (docs/formats.md, "Guest settings")."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from castoff.errors import Invalid

__all__ = ["MAX_BESIDE", "GuestCommand", "GuestFile", "GuestMount", "GuestSettings", "check_mount_path", "encode_settings"]

_ARGUMENT: Final = 1
_ENVIRONMENT: Final = 2
_CWD: Final = 3
_USER: Final = 4
_HOSTNAME: Final = 5
_FLAGS: Final = 6
_WINDOW: Final = 7
_RLIMIT: Final = 8
_FILE: Final = 9
_STOP_SIGNAL: Final = 10
_LINGER: Final = 11
_MOUNT: Final = 12
_PROCESS: Final = 13

_FLAG_TTY: Final = 1
_FLAG_STDIN: Final = 2
_FLAG_PROCESSES: Final = 4
_FLAG_DIAL: Final = 8
_FLAG_TASK: Final = 16

_MAX_STRING: Final = 128 * 1024 - 1
"""Linux's MAX_ARG_STRLEN with its NUL: execve refuses longer arguments and variables."""
_MAX_SETTINGS: Final = 8 * 1024 * 1024 - 1
"""MAX_SETTINGS of guest/init.h."""
_MAX_RLIMITS: Final = 16
_MAX_MOUNTS: Final = 16
MAX_BESIDE: Final = 16
"""Processes that a machine has beside its first."""
_MAX_PATH: Final = 1024


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file that the guest init writes into the root filesystem before the command starts; what was there is replaced."""

    path: str
    data: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class GuestMount:
    """A drive with an ext4 filesystem that the guest init mounts before the command starts.

    Attributes:
        role: The drive's, castoff.disk.clone.Role.
        path: Where; made where it is missing. Symlinks of the image in it stay inside the root filesystem.
    """

    role: str
    path: str


@dataclass(frozen=True, slots=True)
class GuestCommand:
    """A process that runs beside the machine's first, as part of the same command; fields as :class:`GuestSettings` has them."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """What to run in the guest, and how.

    Attributes:
        argv: The command; looked up in PATH where it has no slash.
        env: ``NAME=value`` each. PATH, HOME, HOSTNAME and (with a terminal) TERM are added where missing.
        cwd: Working directory; made if it is missing, as Docker does.
        user: ``user[:group]`` by name or number, resolved in the image; empty: root.
        hostname: Of the machine, and in its /etc/hosts.
        tty: Whether the command gets a terminal (stdout and stderr are then one stream).
        rows, columns: The terminal's size.
        stdin: Whether standard input will be sent; /dev/null otherwise. A terminal always has input.
        stop_signal: What asks the command to end.
        linger: Seconds that the machine waits for its exit code to be taken.
        rlimits: (resource number, soft, hard) each.
        files: Written before the command starts.
        mounts: Volumes, mounted before files are written, in this order.
        beside: Processes that run with this one: they share its output and get its signals. The first of all to end gives the
            exit code; the others get the stop signal then, and five seconds. Not of an executed command.
        listing: Nothing is run: the guest's init writes the list of processes (castoff.vmm.guest_processes) to stdout.
        dials: Nothing is run: the guest's init connects to the TCP port ``argv[1]`` of the guest (castoff.vmm.guest_dial).

        task: Nothing is run: the guest's init does what ``argv`` names (castoff.vmm.guest_tasks).
    """

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    hostname: str = "castoff"
    tty: bool = False
    rows: int = 24
    columns: int = 80
    stdin: bool = False
    stop_signal: int = signal.SIGTERM
    linger: float = 10.0
    rlimits: tuple[tuple[int, int, int], ...] = ()
    files: tuple[GuestFile, ...] = ()
    mounts: tuple[GuestMount, ...] = ()
    beside: tuple[GuestCommand, ...] = ()
    listing: bool = False
    dials: bool = False

    task: bool = False


def _record(tag: int, value: bytes) -> bytes:
    return struct.pack("<BI", tag, len(value)) + value + b"\0"


def _string(tag: int, what: str, text: str) -> bytes:
    # surrogateescape: names of any bytes come from images through os.fsdecode's convention
    value = text.encode("utf-8", "surrogateescape")
    if b"\0" in value:
        raise Invalid(f"{what} {text[:60]!r} holds a NUL byte", hint="no process can be given one")
    if len(value) > _MAX_STRING:
        raise Invalid(f"{what} {text[:60]!r}... has {len(value)} bytes", hint=f"the kernel takes at most {_MAX_STRING}")
    return _record(tag, value)


def _file(file: GuestFile) -> bytes:
    path = file.path.encode("utf-8", "surrogateescape")
    if not path.startswith(b"/") or b"\0" in path or len(path) >= 4096:
        raise Invalid(f"{file.path[:100]!r} is not an absolute path", hint="name the file as the machine should see it")
    return _record(_FILE, struct.pack("<IIIH", file.mode, file.uid, file.gid, len(path)) + path + file.data)


def _mount(mount: GuestMount) -> bytes:
    path = check_mount_path(mount.path).encode("utf-8", "surrogateescape")
    role = mount.role.encode()
    return _record(_MOUNT, bytes([len(role)]) + role + path)


def check_mount_path(path: str) -> str:
    """``path``, where a volume can be mounted there.

    Raises:
        Invalid: It is relative, the root itself, leaves it, or hides what the kernel offers.
    """
    names = [name for name in path.split("/") if name not in ("", ".")]
    if not path.startswith("/") or "\0" in path or len(path.encode("utf-8", "surrogateescape")) >= _MAX_PATH:
        raise Invalid(f"mounts: path {path[:100]!r} is not absolute", hint="name the directory as the machine should see it")
    if not names or ".." in names or names[0] in ("proc", "sys", "dev"):
        raise Invalid(f"mounts: nothing can be mounted at {path[:100]!r}", hint="choose a directory such as /data")
    return "/" + "/".join(names)


def _command(command: GuestCommand | GuestSettings) -> Iterator[bytes]:
    yield from (_string(_ARGUMENT, "the argument", argument) for argument in command.argv)
    yield from (_string(_ENVIRONMENT, "the variable", variable) for variable in command.env)
    yield _string(_CWD, "the working directory", command.cwd or "/")
    yield _string(_USER, "the user", command.user)


def _limits(guest: GuestSettings) -> Iterator[bytes]:
    yield from (_record(_RLIMIT, struct.pack("<IQQ", *limit)) for limit in guest.rlimits)


def _flags(guest: GuestSettings) -> int:
    flags = (
        (guest.tty, _FLAG_TTY),
        (guest.stdin, _FLAG_STDIN),
        (guest.listing, _FLAG_PROCESSES),
        (guest.dials, _FLAG_DIAL),
        (guest.task, _FLAG_TASK),
    )
    return sum(flag for is_set, flag in flags if is_set)


def _records(guest: GuestSettings) -> Iterator[bytes]:
    yield from _command(guest)
    yield _string(_HOSTNAME, "the hostname", guest.hostname)
    yield _record(_FLAGS, struct.pack("<I", _flags(guest)))
    yield _record(_WINDOW, struct.pack("<HH", min(guest.rows, 0xFFFF), min(guest.columns, 0xFFFF)))
    yield _record(_STOP_SIGNAL, struct.pack("<I", guest.stop_signal))
    yield _record(_LINGER, struct.pack("<I", min(int(guest.linger * 1000), 0xFFFF_FFFF)))
    yield from _limits(guest)
    yield from (_file(file) for file in guest.files)
    yield from (_mount(mount) for mount in guest.mounts)
    hostname = _string(_HOSTNAME, "the hostname", guest.hostname)
    yield from (_record(_PROCESS, b"".join([*_command(command), hostname, *_limits(guest)])) for command in guest.beside)


def encode_settings(guest: GuestSettings) -> bytes:
    """The record list of ``guest``.

    Raises:
        Invalid: No command, or something that no process or file can be given.
    """
    if not guest.argv or not guest.argv[0]:
        raise Invalid("there is no command to run", hint="the image names none: give one after the image, or --entrypoint")
    if not 1 <= len(guest.hostname.encode()) <= 64:
        raise Invalid(f"the hostname {guest.hostname[:70]!r} has not 1 to 64 bytes", hint="choose a shorter --name")
    if len(guest.rlimits) > _MAX_RLIMITS:
        raise Invalid(f"{len(guest.rlimits)} resource limits are given", hint=f"at most {_MAX_RLIMITS} are possible")
    if len(guest.mounts) > _MAX_MOUNTS:
        raise Invalid(f"mounts: {len(guest.mounts)} volumes are given", hint=f"at most {_MAX_MOUNTS} are possible")
    _check_beside(guest)
    data = b"".join(_records(guest))
    if len(data) > _MAX_SETTINGS:
        raise Invalid(f"arguments, environment and files are {len(data)} bytes", hint=f"at most {_MAX_SETTINGS} fit")
    return data


def _check_beside(guest: GuestSettings) -> None:
    if len(guest.beside) > MAX_BESIDE:
        raise Invalid(f"processes: {1 + len(guest.beside)} are given", hint=f"a machine has at most {1 + MAX_BESIDE}")
    if guest.beside and guest.tty:
        raise Invalid("several processes cannot share a terminal", hint="leave the terminal away")
    if not all(command.argv and command.argv[0] for command in guest.beside):
        raise Invalid("a process has no command", hint="give it one")
