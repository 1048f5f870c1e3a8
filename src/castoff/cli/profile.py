"""``castoff profile``: what machines of an image read before they were ready."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Group
from castoff.cli.exits import printable
from castoff.cli.globals import Globals
from castoff.cli.parameters import parse_platform
from castoff.cli.session import on_host
from castoff.cli.text import columns, duration, size
from castoff.errors import NotFound
from castoff.image.image import Image, Platform

if TYPE_CHECKING:
    from castoff.artifact.profiles import PublishedProfile
    from castoff.host import Host
    from castoff.hydrate.profile import ChunkId, Profile

__all__ = ["command"]

_SHOWN = 30


@dataclass(frozen=True, slots=True)
class _Run:
    """Chunks of one layer that are read one after another."""

    layer: str
    first: int
    chunks: int
    size: int
    """Bytes; of chunks that are whole, where the layer's index is not here."""
    files: tuple[str, ...]
    """What is in them, most of it first; empty where the layer's index is not here."""


@dataclass(frozen=True, slots=True)
class _Found:
    image: Image
    profile: Profile | None
    published: PublishedProfile | None
    signer: str
    runs: tuple[_Run, ...]


@click.group(cls=Group)
def command() -> None:
    """Look at boot profiles: what machines of an image read before they were ready."""


@command.command()
@click.argument("image")
@click.option("--platform", type=parse_platform, metavar="OS/ARCH", help="Platform of the image.")
@click.option("--all", "every", is_flag=True, help=f"List everything that is read, not the first {_SHOWN} runs of chunks.")
@click.pass_obj
def show(shared: Globals, image: str, platform: Platform | None, every: bool) -> None:
    """Show the boot profile of an image: this host's, in the order in which it is fetched, and the one that is published.

    Profiles record themselves: the first machine that starts from a lazy root filesystem makes one, the next ones refine it.
    """
    found = on_host(shared, lambda host: _find(shared, host, image, platform))
    shared.answer(_as_json(found), lambda: _as_text(found, every))


async def _find(shared: Globals, host: Host, reference: str, platform: Platform | None) -> _Found:
    import asyncio

    from castoff.artifact.trust import load_trust
    from castoff.create import opened
    from castoff.hydrate.profile_file import load_profile
    from castoff.rootfs.boot_profile import published_profile

    async with opened(reference, platform, config=host.config, store=host.store) as (_, image):
        profile = await asyncio.to_thread(load_profile, host.store, image.digest)
        trust = await asyncio.to_thread(load_trust, host.store.state)
        published = await published_profile(image, host.providers)
    if profile is None and published is None:
        raise NotFound(f"{reference} has no boot profile yet", hint="the first lazy boot of it anywhere records one")
    runs = await asyncio.to_thread(_runs, host, profile.chunks if profile is not None else ())
    known = None if published is None else trust.find(published.referrer.key)
    return _Found(image, profile, published, "" if known is None else known.name or known.key.fingerprint, runs)


def _runs(host: Host, chunks: Sequence[ChunkId]) -> tuple[_Run, ...]:
    """The chunks in their order, neighbours together."""
    from castoff.cli.contents import Contents
    from castoff.layers.toc import CHUNK

    contents = {diff_id: Contents.of(host.store, diff_id) for diff_id in dict.fromkeys(chunk.diff_id for chunk in chunks)}
    found = []
    for run in _neighbours(chunks):
        diff_id, first, count = run[0].diff_id, run[0].number, len(run)
        known = contents[diff_id]
        size = count * CHUNK if known is None else known.size(first, count)
        found.append(_Run(str(diff_id), first, count, size, () if known is None else known.files(first, count)))
    return tuple(found)


def _neighbours(chunks: Sequence[ChunkId]) -> Iterator[list[ChunkId]]:
    run: list[ChunkId] = []
    for chunk in chunks:
        if run and (chunk.diff_id, chunk.number) != (run[-1].diff_id, run[-1].number + 1):
            yield run
            run = []
        run.append(chunk)
    if run:
        yield run


def _as_json(found: _Found) -> dict[str, Any]:
    profile, published = found.profile, found.published
    return {
        "reference": found.image.reference,
        "image": str(found.image.digest),
        "boots": [
            {"id": boot.id, "recorded": boot.recorded, "chunks": len(boot.chunks)} for boot in (profile.boots if profile else ())
        ],
        "chunks": sum(run.chunks for run in found.runs),
        "size": sum(run.size for run in found.runs),
        "order": [
            {"layer": run.layer, "first": run.first, "chunks": run.chunks, "size": run.size, "files": list(run.files)}
            for run in found.runs
        ],
        "published": None
        if published is None
        else {
            "repository": published.repository,
            "digest": str(published.digest),
            "signer": str(published.referrer.key),
            "boots": published.referrer.boots,
            "recorded": published.referrer.recorded,
            "hot_pack": {"digest": str(published.referrer.hot_pack.digest), "size": published.referrer.hot_pack.size},
        },
    }


def _as_text(found: _Found, every: bool) -> str:
    profile, published = found.profile, found.published
    facts = [("image", printable(found.image.reference)), ("digest", str(found.image.digest))]
    if profile is None:
        facts.append(("here", "none; the next lazy boot takes the published one"))
    else:
        boots = f"{_boots(len(profile.boots))}, the last {_ago(profile.boots[-1].recorded)} ago"
        total = sum(run.size for run in found.runs)
        facts.append(("here", f"{boots}: {sum(run.chunks for run in found.runs)} chunks, {size(total)}"))
    if published is None:
        facts.append(("published", "none that counts here"))
    else:
        told = published.referrer
        facts.append(
            (
                "published",
                f"{published.repository}, by {printable(found.signer)}, {_boots(told.boots)}, the last {_ago(told.recorded)} ago",
            )
        )
        facts.append(("hot pack", size(told.hot_pack.size)))
    shown = found.runs if every else found.runs[:_SHOWN]
    rows = [(run.layer[:19], str(run.first), str(run.chunks), size(run.size), _files(run)) for run in shown]
    table = columns(rows, heads=("LAYER", "CHUNK", "COUNT", "SIZE", "FILES"), right=(1, 2, 3)) if rows else ""
    more = f"and {len(found.runs) - len(shown)} more: --all" if len(shown) < len(found.runs) else ""
    return "\n".join(part for part in (columns(facts), f"\n{table}" if table else "", more) if part)


def _files(run: _Run) -> str:
    if not run.files:
        return ""
    rest = f" and {len(run.files) - 1} more" if len(run.files) > 1 else ""
    return printable(run.files[0]) + rest


def _boots(count: int) -> str:
    return f"{count} boot{'s' if count > 1 else ''}"


def _ago(when: float) -> str:
    return duration(max(0.0, round(time.time() - when)))
