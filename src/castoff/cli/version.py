"""``castoff version``: what to put in a bug report."""

from __future__ import annotations

import platform
from importlib import metadata

import click

from castoff.cli.app import Command
from castoff.cli.globals import Globals

__all__ = ["command"]

_LIBRARIES = ("aiohttp", "blake3", "click", "isal", "msgspec", "numpy", "zstandard", "grpcio")


@click.command(cls=Command)
@click.pass_obj
def command(shared: Globals) -> None:
    """Print the versions of castoff and of what it stands on."""
    from castoff import __version__

    found = {"castoff": __version__, "python": platform.python_version(), "kernel": platform.release()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    shared.answer(found, lambda: "\n".join(f"{name} {version}" for name, version in found.items()))
