"""What a machine runs: the image's configuration with the request on top, by Docker's rules.

An entrypoint that the request gives drops the image's ``cmd``; a command replaces ``cmd`` alone; variables replace those of
the same name (https://docs.docker.com/reference/dockerfile/#understand-how-cmd-and-entrypoint-interact).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

from castoff.disk.clone import volume_role
from castoff.errors import Invalid
from castoff.image.image import ImageConfig
from castoff.machine.model import MachineRequest, ProcessRequest
from castoff.vmm.guest import GuestCommand, GuestMount, GuestSettings, encode_settings

__all__ = ["guest_settings"]

_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


def guest_settings(config: ImageConfig, request: MachineRequest, *, hostname: str, linger: float = 10.0) -> GuestSettings:
    """What the guest is told to run.

    Args:
        config: The image's configuration.
        request: What was asked for.
        hostname: The guest's name where the request gives none.
        linger: Seconds that the machine waits for its exit code to be taken.

    Raises:
        Invalid: There is nothing to run, or a part of it could never be executed.
    """
    cwd = _working_dir(config, request)
    settings = GuestSettings(
        argv=_argv(config, request, request.image),
        env=_environment(config.env, request.env),
        cwd=cwd,
        user=_user(config, request),
        hostname=_hostname(request, hostname),
        tty=request.tty,
        columns=request.columns,
        rows=request.rows,
        stdin=request.interactive,
        stop_signal=_signal(config.stop_signal),
        linger=linger if request.linger is None else request.linger,
        files=request.files,
        mounts=tuple(GuestMount(volume_role(at), volume.guest_path) for at, volume in enumerate(request.volumes)),
        beside=tuple(
            GuestCommand(_argv(config, one, request.image), _environment(config.env, one.env), cwd, _user(config, one))
            for one in request.beside
        ),
    )
    encode_settings(settings)  # refuses what cannot be executed now, not after an image was fetched and converted
    return settings


def _hostname(request: MachineRequest, otherwise: str) -> str:
    if request.hostname is not None and not _HOSTNAME.match(request.hostname):
        raise Invalid(f"{request.hostname[:80]!r} is no host name", hint="letters, digits, dots, dashes; at most 64")
    return request.hostname or otherwise


def _user(config: ImageConfig, request: MachineRequest | ProcessRequest) -> str:
    return config.user if request.user is None else request.user


def _argv(config: ImageConfig, request: MachineRequest | ProcessRequest, image: str) -> tuple[str, ...]:
    if request.entrypoint is not None:
        argv = (*request.entrypoint, *request.command)
    else:
        argv = (*config.entrypoint, *(request.command or config.cmd))
    if not argv:
        raise Invalid(f"image {image} names no command", hint="give one after the image")
    return argv


def _working_dir(config: ImageConfig, request: MachineRequest) -> str:
    if request.working_dir is not None and not request.working_dir.startswith("/"):
        raise Invalid(f"working directory {request.working_dir[:80]!r} is relative", hint="give an absolute path in the image")
    directory = request.working_dir or config.working_dir or "/"
    # An image's may be relative: `WORKDIR app` is, and runtimes take it from the root. A person's is a slip.
    return directory if directory.startswith("/") else f"/{directory}"


def _environment(*sources: Iterable[str]) -> tuple[str, ...]:
    """The variables of all sources, later ones over earlier; what has no ``=`` sets nothing, as in Docker."""
    merged: dict[str, str] = {}
    for source in sources:
        for variable in source:
            key, equals, value = variable.partition("=")
            if key and equals:
                merged[key] = value
    return tuple(f"{key}={value}" for key, value in merged.items())


def _signal(name: str) -> int:
    """A STOPSIGNAL, ``SIGQUIT``, ``QUIT`` or ``3``; SIGTERM where it is none, as in Docker's daemon."""
    if name.isascii() and name.isdigit():
        return int(name) if 0 < int(name[:4]) <= 64 else signal.SIGTERM
    found = signal.Signals.__members__.get(name if name.startswith("SIG") else f"SIG{name}")
    return signal.SIGTERM if found is None else found
