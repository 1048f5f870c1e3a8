"""``castoff machine cp``: files and directories into an agent's machines and out of them."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from castoff.cli.app import Command
from castoff.cli.exits import Exit, printable
from castoff.cli.globals import Globals
from castoff.cli.remote import AppOption, find_machine, on_agent
from castoff.cli.session import shown
from castoff.errors import NotFound
from castoff.timeline import Timeline, recording, step

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["copy"]


class _LeftOut(Protocol):
    def __call__(self, name: str, why: str) -> None: ...


@click.command("cp", cls=Command)
@AppOption
@click.argument("source", metavar="SOURCE|NAME:PATH")
@click.argument("target", metavar="TARGET|NAME:PATH")
@click.pass_obj
def copy(shared: Globals, app: str, source: str, target: str) -> int:
    """Copy a file or a directory into a machine, or out of one; into the target where that is a directory.

    Of any size and any bytes, with modes and times, without a program of the machine's image. What goes in belongs to root there,
    what comes out to you. PATH/. is what is in a directory. Devices, pipes and links that lead out of what is copied out are left
    out and named; the command ends with 1 then.
    """
    (from_machine, from_path), (to_machine, to_path) = (_place(source), _place(target))
    if bool(from_machine) == bool(to_machine):
        raise click.UsageError("one of the two is NAME:PATH, the other a path of this host")
    left: list[str] = []

    def left_out(name: str, why: str) -> None:
        left.append(name)
        print(f"castoff: {printable(name)} is left out: it is {printable(why)}", file=sys.stderr)

    async def work(client: ApiClient) -> None:
        machine = await find_machine(client, app, from_machine or to_machine)
        files = f"/v1/apps/{machine['app']}/machines/{machine['id']}/files"
        if from_machine:
            await _receive(client, files, from_path, Path(to_path), left_out)
        else:
            await _send(client, files, from_path, to_path, left_out)

    progress = shown(shared)
    with recording(Timeline(observers=(progress,))), progress:
        on_agent(shared, work)
    shared.answer({"copied": target, "left_out": left}, lambda: "")
    return Exit.NO if left else Exit.OK


async def _receive(client: ApiClient, files: str, path: str, target: Path, left_out: _LeftOut) -> None:
    from castoff.cli.files_in import Receiver

    with step("cli.machine_copy", total=0, path=path) as current:

        def announce(size: int) -> None:
            current.total = (current.total or 0) + size  # of what was seen so far: the archive has no table of contents

        with Receiver(target, path, announce=announce, advance=current.advance, left_out=left_out) as receiver:
            async for piece in client.pieces(files, query={"path": path}):
                receiver.feed(piece)
            receiver.finish()


async def _send(client: ApiClient, files: str, source: str, path: str, left_out: _LeftOut) -> None:
    from castoff.cli.files_out import archive_of, size_of, top_name

    with step("cli.machine_copy", total=size_of(Path(source)), path=source) as current:
        left = functools.partial(left_out, why="no file")
        archive = archive_of(Path(source), top_name(source), advance=current.advance, left_out=left)
        try:
            await client.send(files, archive, query={"path": path})
        except NotFound as error:
            raise NotFound(error.what, hint="make the directory in the machine first") from error


def _place(text: str) -> tuple[str, str]:
    machine, colon, path = text.partition(":")
    return (machine, path) if colon and machine and "/" not in machine else ("", text)
