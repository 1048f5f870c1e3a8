"""The words of a command line that have a form of their own: sizes, ports, platforms, variables."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from castoff.image import platforms
from castoff.image.image import Platform
from castoff.vmm.vmm import PortForward

__all__ = ["environment", "parse_platform", "parse_port", "parse_rate", "parse_size", "read_env_file"]

_SIZE = re.compile(r"(\d{1,15})(?:\.(\d{1,6}))?\s*([kmgtp]?)i?b?\Z", re.IGNORECASE)
_PORT = re.compile(
    r"(?:(?P<address>\[[0-9a-fA-F:.]+\]|[0-9.]+):)?(?P<host>\d{1,5}):(?P<guest>\d{1,5})(?:/(?P<protocol>tcp|udp))?\Z"
)
_PLATFORM_PART = re.compile(r"[a-z0-9_.]{1,32}\Z")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_ENV_FILE_LIMIT = 4 * 1024 * 1024


def parse_size(text: str) -> int:
    """Bytes, with a suffix in powers of 1024 as qemu, docker and fallocate read it: ``512M``, ``8G``, ``1.5GiB``."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size: write 512M or 8G")
    whole, fraction, power = match.groups()
    unit: int = 1024 ** _POWERS[power.lower()]
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def parse_rate(text: str) -> int:
    """Bytes a second: a size, and ``/s`` behind it or not."""
    rate = parse_size(text.strip().removesuffix("/s"))
    if not rate:
        raise click.BadParameter("nothing a second would never end")
    return rate


def parse_port(text: str) -> PortForward:
    """``HOST:GUEST``, with an address before and ``/udp`` behind: ``8080:80``, ``0.0.0.0:53:53/udp``."""
    match = _PORT.match(text)
    if match is None or not (0 < int(match["host"]) < 65536 and 0 < int(match["guest"]) < 65536):
        raise click.BadParameter(f"{text!r} is not HOST:GUEST, like 8080:80 or 0.0.0.0:53:53/udp")
    address = (match["address"] or "127.0.0.1").strip("[]")
    return PortForward(int(match["host"]), int(match["guest"]), address, match["protocol"] or "tcp")


def parse_platform(text: str) -> Platform:
    """``OS/ARCHITECTURE[/VARIANT]``, or the architecture alone."""
    parts = text.lower().split("/")
    if len(parts) > 3 or not all(_PLATFORM_PART.match(part) for part in parts):
        raise click.BadParameter(f"{text!r} is not a platform, like linux/amd64 or linux/arm64/v8")
    return platforms.parse_platform(text)


def environment(pairs: tuple[str, ...], files: tuple[Path, ...]) -> tuple[str, ...]:
    """The variables that ``-e`` and ``--env-file`` give, as ``K=V``; ``-e`` wins, ``K`` alone takes this process's value.

    A variable that is named alone and is not set here is left out, as docker does.
    """
    found: dict[str, str] = {}
    for text in [line for file in files for line in read_env_file(file)] + list(pairs):
        key, equals, value = text.partition("=")
        if not key or "\0" in text:
            raise click.UsageError(f"{text!r} is not a variable: write NAME=VALUE or NAME")
        if not equals:
            here = os.environ.get(key)
            if here is None:
                continue
            value = here
        found[key] = value
    return tuple(f"{key}={value}" for key, value in found.items())


def read_env_file(path: Path) -> list[str]:
    """The lines of an ``--env-file``: ``K=V`` or ``K``; values as they stand, as docker takes them; ``#`` starts a comment."""
    try:
        with path.open("rb") as file:
            data = file.read(_ENV_FILE_LIMIT + 1)
    except OSError as error:
        raise click.UsageError(f"--env-file {path} cannot be read: {error.strerror}") from error
    if len(data) > _ENV_FILE_LIMIT:
        raise click.UsageError(f"--env-file {path} is over {_ENV_FILE_LIMIT >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--env-file {path} is not UTF-8: {error}") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]  # splitlines() would cut values at form feeds and U+2028
    return [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
