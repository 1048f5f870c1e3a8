"""``castoff trust``: whose artifacts count on this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castoff.cli.app import Group
from castoff.cli.globals import Globals
from castoff.cli.names import trusted_keys
from castoff.cli.text import columns

if TYPE_CHECKING:
    from castoff.artifact.trust import TrustedKey

__all__ = ["command"]


@click.group(cls=Group)
def command() -> None:
    """List, add and remove the keys whose artifacts count on this host."""


@command.command("list")
@click.pass_obj
def list_(shared: Globals) -> None:
    """List the keys whose artifacts count here. A host's own key, once it has one, counts by itself."""
    from castoff.artifact.trust import load_trust

    trust = load_trust(shared.load().state)
    for problem in trust.problems:
        shared.note(problem)
    rows = [(known.key.fingerprint, known.name, str(known.key)) for known in trust.keys]
    answer = {"keys": [_as_json(known) for known in trust.keys], "problems": list(trust.problems)}
    shared.answer(answer, lambda: columns(rows, heads=("FINGERPRINT", "NAME", "KEY")))


@command.command()
@click.argument("key", metavar="KEY-OR-FILE")
@click.option("--name", metavar="NAME", help="What `trust list` calls it; a file may say so too.")
@click.pass_obj
def add(shared: Globals, key: str, name: str | None) -> None:
    """Trust a key: artifacts that it signed count here from now on. KEY is what `castoff key show` prints there."""
    from castoff.artifact.trust import read_key, trust_key

    found, told = read_key(key)
    added = trust_key(shared.load().state, found, told if name is None else name)
    shared.answer(_as_json(added), lambda: _line(added))


@command.command()
@click.argument("key", metavar="KEY", shell_complete=trusted_keys)
@click.pass_obj
def remove(shared: Globals, key: str) -> None:
    """Trust a key no longer: KEY is the key, its name, or the beginning of its fingerprint.

    What came from its artifacts already stays: `castoff rootfs verify --origin` compares it with the image's own layers.
    """
    from castoff.artifact.trust import distrust

    removed = distrust(shared.load().state, key)
    shared.answer(_as_json(removed), lambda: _line(removed))


def _line(known: TrustedKey) -> str:
    return f"{known.key.fingerprint} {known.name}".rstrip()


def _as_json(known: TrustedKey) -> dict[str, str | bool]:
    return {"key": str(known.key), "fingerprint": known.key.fingerprint, "name": known.name, "own": known.own}
