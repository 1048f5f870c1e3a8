"""``castoff store``: what castoff keeps on this host."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from castoff.cli.app import Group
from castoff.cli.exits import Exit
from castoff.cli.globals import Globals
from castoff.cli.parameters import parse_size
from castoff.cli.session import on_host
from castoff.cli.text import columns, size
from castoff.cli.verdicts import tell_verdicts

if TYPE_CHECKING:
    from castoff.host import Host
    from castoff.store.prune import Pruned
    from castoff.store.usage import Usage

__all__ = ["command"]


@click.group(cls=Group)
def command() -> None:
    """Look after what castoff keeps on this host."""


@command.command()
@click.pass_obj
def usage(shared: Globals) -> None:
    """Show what the store holds and takes on disk; what is shared counts once."""

    async def work(host: Host) -> tuple[Usage, str, bool]:
        return await host.usage(), str(host.store.root), host.store.reflink

    found, where, reflink = on_host(shared, work)
    rows = [
        ("layers", str(len(found.layers)), size(sum(layer.allocated for layer in found.layers))),
        ("root filesystems", str(len(found.rootfs)), size(sum(one.own for one in found.rootfs)) + " of their own"),
        ("machines", str(len(found.machines)), size(sum(one.own for one in found.machines)) + " of their own"),
        (
            "together",
            "",
            size(found.total) + (f", at most {size(found.limit)} for layers and root filesystems" if found.limit else ""),
        ),
        ("free", "", size(found.free)),
    ]
    head = f"{where} ({'reflinks' if reflink else 'no reflinks: root filesystems are copies'})"
    shared.answer(asdict(found) | {"store": where, "reflink": reflink}, lambda: f"{head}\n{columns(rows, right=(1,))}")


@command.command()
@click.option("--limit", type=parse_size, metavar="SIZE", help="Stop when so much is left; everything unused goes by default.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would go.")
@click.pass_obj
def prune(shared: Globals, limit: int | None, dry_run: bool) -> None:
    """Remove layers and root filesystems that no machine and no process uses, the least recently used first."""

    async def work(host: Host) -> Pruned:
        return await host.prune(limit=limit or 0, dry_run=dry_run)

    pruned = on_host(shared, work)
    verb = "would remove" if dry_run else "removed"
    freed = "" if dry_run else f", {size(pruned.before - pruned.after)} are free again"
    text = f"{verb} {len(pruned.rootfs)} root filesystems and {len(pruned.layers)} layers{freed}"
    shared.answer(asdict(pruned) | {"dry_run": dry_run}, lambda: text)


@command.command()
@click.option("--repair", is_flag=True, help="Remove what is damaged, where nothing uses it; it is made again when it is needed.")
@click.pass_obj
def verify(shared: Globals, repair: bool) -> int:
    """Hash all layers again, compose all root filesystems again, and compare. Exits with 1 where something is damaged."""
    return tell_verdicts(shared, on_host(shared, lambda host: host.verify(repair=repair)))


@command.command()
@click.pass_obj
def unmount(shared: Globals) -> int:
    """Unmount the store where it is a filesystem in a file; the next command mounts it again."""
    from castoff.store.backing import unmount_backing

    state = shared.load().state
    done = unmount_backing(state)
    shared.answer({"unmounted": done}, lambda: f"unmounted {state / 'store'}" if done else "nothing was mounted")
    return Exit.OK
