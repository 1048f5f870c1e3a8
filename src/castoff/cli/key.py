"""``castoff key``: the key that this host signs with."""

from __future__ import annotations

import click

from castoff.cli.app import Group
from castoff.cli.globals import Globals

__all__ = ["command"]


@click.group(cls=Group)
def command() -> None:
    """Show the key that this host signs artifacts with."""


@command.command()
@click.pass_obj
def show(shared: Globals) -> None:
    """Print this host's public key, for `castoff trust add` on other hosts. Makes the key where there is none."""
    from castoff.artifact.keys import host_key, keys_directory

    state = shared.load().state
    public = host_key(state).public
    if not shared.json:
        shared.note(f"the fingerprint of this host's key is {public.fingerprint}")
    answer = {"key": str(public), "fingerprint": public.fingerprint, "file": str(keys_directory(state) / "host.key")}
    shared.answer(answer, lambda: str(public))
