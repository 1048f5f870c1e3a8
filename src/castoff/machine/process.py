"""What a machine runs: the image's configuration with the request on top, by Docker's rules.

An entrypoint that the request gives drops the image's ``cmd``; a command replaces ``cmd`` alone; variables replace those of
the same name (https://docs.docker.com/reference/dockerfile/#understand-how-cmd-and-entrypoint-interact).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from castoff.errors import Invalid
from castoff.image.image import ImageConfig
from castoff.machine.model import MachineRequest

__all__ = ["DEFAULT_PATH", "Process", "process_of"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Docker's, for images that set none."""

_STRING_LIMIT = 128 * 1024 - 1
"""MAX_ARG_STRLEN: the longest string that execve takes (execve(2)), its NUL included."""
_TOTAL_LIMIT = 1024 * 1024
"""Bytes of arguments and environment together; the kernel's own limit is a quarter of the stack's, 2 MiB by default."""


@dataclass(frozen=True, slots=True)
class Process:
    """The process that a machine runs, complete but for what only the guest knows (``user`` names are its own)."""

    argv: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: str
    hostname: str
    interactive: bool
    tty: bool


def process_of(config: ImageConfig, request: MachineRequest, *, hostname: str) -> Process:
    """The process that ``request`` wants of an image.

    Args:
        config: The image's configuration.
        request: What was asked for.
        hostname: The guest's name where the request gives none.

    Raises:
        Invalid: There is nothing to run, or a part of it could never be executed.
    """
    hostname = request.hostname or hostname
    working_dir = request.working_dir or config.working_dir or "/"
    process = Process(
        argv=_argv(config, request),
        env=_environment(config, request, hostname),
        # An image's may be relative (Dockerfiles say so, runtimes take it from the root); a person's is a slip.
        working_dir=working_dir if working_dir.startswith("/") else f"/{working_dir}",
        user=request.user if request.user is not None else config.user,
        hostname=hostname,
        interactive=request.interactive,
        tty=request.tty,
    )
    if request.working_dir is not None and not request.working_dir.startswith("/"):
        raise Invalid(f"working directory {request.working_dir[:80]!r} is relative", hint="give an absolute path in the image")
    _check(process)
    return process


def _argv(config: ImageConfig, request: MachineRequest) -> tuple[str, ...]:
    if request.entrypoint is not None:
        entrypoint, cmd = request.entrypoint, request.command
    else:
        entrypoint, cmd = config.entrypoint, request.command or config.cmd
    argv = (*entrypoint, *cmd)
    if not argv:
        raise Invalid(f"image {request.image} names no command", hint="give one after the image")
    if not argv[0]:
        raise Invalid(f"the command of image {request.image} is an empty string", hint="give one after the image")
    return argv


def _environment(config: ImageConfig, request: MachineRequest, hostname: str) -> tuple[str, ...]:
    given = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if request.tty:
        given["TERM"] = "xterm"
    given.update(_pairs(config.env))
    given.update(_pairs(request.env))
    return tuple(f"{key}={value}" for key, value in given.items())


def _pairs(variables: Iterable[str]) -> Iterable[tuple[str, str]]:
    """``K=V`` split; what is none sets nothing, as in Docker."""
    for variable in variables:
        key, equals, value = variable.partition("=")
        if key and equals:
            yield key, value


def _check(process: Process) -> None:
    strings = (*process.argv, *process.env, process.working_dir, process.user)
    if any("\0" in string for string in strings):
        raise Invalid("an argument, variable, user or directory of the command has a NUL in it")
    lengths = [len(string.encode(errors="surrogateescape")) for string in strings]
    if max(lengths) > _STRING_LIMIT:
        raise Invalid(f"an argument or variable of the command is {max(lengths)} bytes long", hint=f"Linux takes {_STRING_LIMIT}")
    if sum(lengths) > _TOTAL_LIMIT:
        raise Invalid(
            f"arguments and environment of the command are {sum(lengths)} bytes", hint=f"at most {_TOTAL_LIMIT} together"
        )
