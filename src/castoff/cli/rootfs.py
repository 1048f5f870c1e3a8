"""``castoff rootfs``: root filesystems that machines boot from."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Group
from castoff.cli.exits import printable
from castoff.cli.globals import Globals
from castoff.cli.names import rootfs_names
from castoff.cli.parameters import parse_platform, parse_size
from castoff.cli.parts import parts_as_json, parts_as_text
from castoff.cli.session import on_host
from castoff.cli.text import columns, duration, size
from castoff.cli.verdicts import tell_verdicts
from castoff.errors import Conflict, Invalid, NotFound
from castoff.image.image import Platform

if TYPE_CHECKING:
    from castoff.build import BuiltRootfs
    from castoff.host import Host
    from castoff.rootfs.verify import Verdict
    from castoff.store.usage import RootfsUsage

__all__ = ["command"]

_NAME = re.compile(r"[0-9a-f]{8,64}(-[0-9]*)?\Z")
"""The beginning of a name; no image is called so by anybody."""


@click.group(cls=Group)
def command() -> None:
    """Build, list, show, remove and verify bootable root filesystems."""


@command.command()
@click.argument("image")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it to a file too.")
@click.option("--size", "wanted", type=parse_size, metavar="SIZE", help="Size of the filesystem, like 8G.")
@click.option("--platform", type=parse_platform, metavar="OS/ARCH", help="Platform of the image.")
@click.option("--timeline", "timeline_file", metavar="FILE", help="Write the timeline as JSON; - draws it on stderr.")
@click.pass_obj
def build(
    shared: Globals, image: str, output: Path | None, wanted: int | None, platform: Platform | None, timeline_file: str | None
) -> None:
    """Make the root filesystem of an image: a bootable ext4, shared with the layers that it is made of."""

    def work(host: Host) -> Any:
        return host.build_rootfs(image, size=wanted, output=output, platform=platform)

    built: BuiltRootfs = on_host(shared, work, timeline_file=timeline_file, title=image)
    answer = {
        "reference": built.image.reference,
        "image": str(built.image.digest),
        "platform": str(built.image.platform),
        "provider": built.provider,
        "path": built.path and str(built.path),
        "size": built.size,
    }
    shared.answer(answer, lambda: str(built.path or ""))


@command.command("list")
@click.pass_obj
def list_(shared: Globals) -> None:
    """List the root filesystems that are here or come in, with what each takes on disk of its own."""

    async def work(host: Host) -> tuple[RootfsUsage, ...]:
        return await host.rootfs()

    found = on_host(shared, work)
    heads = ("NAME", "IMAGE", "SIZE", "OWN", "HERE", "MACHINES", "USED")
    rows = [
        (
            _short(one.name, found),
            printable(one.reference),
            size(one.size),
            size(one.own),
            f"{int(one.hydrated * 100)} %",
            str(len(one.machines)),
            _ago(one.last_used),
        )
        for one in found
    ]
    shared.answer([_as_json(one) for one in found], lambda: columns(rows, heads=heads, right=(2, 3, 4, 5)))


@command.command()
@click.argument("name", metavar="NAME|IMAGE", shell_complete=rootfs_names)
@click.option("--platform", type=parse_platform, metavar="OS/ARCH", help="Platform of the image.")
@click.pass_obj
def show(shared: Globals, name: str, platform: Platform | None) -> None:
    """Show one, by the beginning of its NAME; or where every part of an IMAGE is: in the store, in an artifact, at its origin."""
    if not _NAME.match(name):
        found = on_host(shared, lambda host: host.whereabouts(name, platform=platform))
        shared.answer(parts_as_json(found), lambda: parts_as_text(found))
        return
    one = on_host(shared, lambda host: _one(host, name))
    facts = [
        ("name", one.name),
        ("image", printable(one.reference)),
        ("digest", one.image),
        ("provider", one.provider),
        ("size", size(one.size)),
        ("on disk", f"{size(one.allocated)}, {size(one.own)} of it shared with nothing"),
        ("made", f"{_ago(one.created)} ago"),
        ("used", f"{_ago(one.last_used)} ago"),
        ("machines", " ".join(one.machines) or "none"),
        *(("layer", layer) for layer in one.layers),
    ]
    shared.answer(_as_json(one), lambda: columns(facts))


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=rootfs_names)
@click.pass_obj
def remove(shared: Globals, names: tuple[str, ...]) -> None:
    """Remove some: NAME as of `show`. Their layers stay; those that a machine uses are refused."""

    async def work(host: Host) -> list[str]:
        removed = []
        for name in names:
            one = await _one(host, name)
            await host.remove_rootfs(one.name)
            removed.append(one.name)
        return removed

    removed = on_host(shared, work)
    shared.answer({"removed": removed}, lambda: "\n".join(removed))


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=rootfs_names)
@click.option(
    "--origin", "images", multiple=True, metavar="IMAGE", help="Convert an image's layers anew, and compare its artifact."
)
@click.pass_obj
def verify(shared: Globals, names: tuple[str, ...], images: tuple[str, ...]) -> int:
    """Compose some (or all) again from their layers, and compare. Exits with 1 where one is damaged.

    With --origin, every digest of an image's artifact is compared with what the image's own layers give.
    """
    if images and names:
        raise click.UsageError("--origin takes images in place of names")

    async def work(host: Host) -> list[Verdict]:
        if images:
            return [verdict for image in images for verdict in await host.verify_origin(image)]
        chosen = [await _one(host, name) for name in names] if names else await _all(host)
        return [await host.verify_rootfs(one.name) for one in chosen]

    return tell_verdicts(shared, on_host(shared, work))


def _as_json(one: RootfsUsage) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(one)


async def _all(host: Host) -> tuple[RootfsUsage, ...]:
    return (await host.usage()).rootfs


async def _one(host: Host, name: str) -> RootfsUsage:
    """The one rootfs that ``name`` means."""
    if not name:
        raise Invalid("the name of a root filesystem is empty", hint="`castoff rootfs list` shows those that are")
    found = [one for one in await _all(host) if name in (one.name, one.reference, one.image) or one.name.startswith(name)]
    if not found:
        raise NotFound(f"no root filesystem {name[:100]!r} is here", hint="`castoff rootfs list` shows those that are")
    if len(found) > 1:
        raise Conflict(f"{name[:100]!r} means {len(found)} root filesystems", hint="give more of its name")
    return found[0]


def _short(name: str, among: Sequence[RootfsUsage]) -> str:
    """16 characters of a name, where they tell it apart; else all of it: sizes of one image differ at the end."""
    return name[:16] if sum(one.name.startswith(name[:16]) for one in among) == 1 else name


def _ago(when: float) -> str:
    return duration(max(0.0, round(time.time() - when)))
