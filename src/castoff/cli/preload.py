"""``castoff preload``: images made ready ahead of need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Command
from castoff.cli.exits import Exit, line_of, printable
from castoff.cli.globals import Globals
from castoff.cli.parameters import parse_platform, parse_rate, parse_size
from castoff.cli.session import on_host
from castoff.cli.text import size
from castoff.errors import CastoffError, Invalid
from castoff.image.image import Platform

if TYPE_CHECKING:
    from castoff.host import Host
    from castoff.preload import Preloaded

__all__ = ["command", "images_of"]

_FILE_LIMIT = 4 << 20
_WAYS = {
    "here": "was here",
    "artifact": "from its artifact, {fetched} fetched",
    "profile": "what its boot profile names, {fetched} fetched",
    "origin": "converted from its layers",
}


@click.command(cls=Command)
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Images, one a line; - is stdin.",
)
@click.option("--profile-only", is_flag=True, help="Only what the boot profile names: lazy machines fetch the rest.")
@click.option("--limit", type=parse_rate, metavar="RATE", help="Fetch at most so much a second, like 50MB/s.")
@click.option("--disk-size", "wanted", type=parse_size, metavar="SIZE", help="Size of the root filesystem, like 8G.")
@click.option("--platform", type=parse_platform, metavar="OS/ARCH", help="Platform of the images.")
@click.option(
    "--hosts",
    metavar="HOSTS",
    help="Have hosts of the fleet do it: all, a number, region=R, zone=Z, host=NAME, label=KEY=VALUE, or several with commas.",
)
@click.option("--keep", is_flag=True, help="With --hosts: watch the tags, and make ready what they come to mean.")
@click.option("--window", metavar="HH:MM-HH:MM", help="With --hosts: only in these hours, by each host's own clock and zone.")
@click.option("--detach", "-d", is_flag=True, help="With --hosts: do not wait for the hosts.")
@click.option("--timeline", "timeline_file", metavar="FILE", help="Write the timeline as JSON; - draws it on stderr.")
@click.pass_obj
def command(
    shared: Globals,
    images: tuple[str, ...],
    files: tuple[Path, ...],
    profile_only: bool,
    limit: int | None,
    wanted: int | None,
    platform: Platform | None,
    hosts: str | None,
    keep: bool,
    window: str | None,
    detach: bool,
    timeline_file: str | None,
) -> int:
    """Make images ready, so that their machines start at once.

    Layers come from an artifact whose key is trusted, or are converted. What was interrupted goes on where it was; what is
    here already is left alone. Exits with 1 when an image could not be made ready; the others are.

    With --hosts this host's agent gives an order to the fleet, which outlives this command: `castoff fleet orders` lists and
    cancels orders.
    """
    names = images_of(images, files)
    if not names:
        raise click.UsageError("no image is named")
    if hosts is not None:
        if timeline_file is not None:
            raise click.UsageError("--timeline is of this host's work, and --hosts is for others")
        from castoff.cli.preload_fleet import give_order

        order = {"images": names, "hosts": hosts, "keep": keep, "limit": limit or 0, "window": window or "", "size": wanted}
        order |= {"platform": str(platform or ""), "profile_only": profile_only}
        return give_order(shared, order, detach=detach)
    if keep or window or detach:
        raise click.UsageError("--keep, --window and --detach go with --hosts")

    async def work(host: Host) -> list[tuple[str, Preloaded | CastoffError]]:
        answers: list[tuple[str, Preloaded | CastoffError]] = []
        for name in names:
            try:
                ready = await host.preload(name, size=wanted, platform=platform, limit=limit or 0, profile_only=profile_only)
            except CastoffError as error:
                shared.note(f"{name}: {line_of(error)}")
                answers.append((name, error))
            else:
                answers.append((name, ready))
        return answers

    answers = on_host(shared, work, timeline_file=timeline_file, title=" ".join(names))
    shared.answer([_as_json(*answer) for answer in answers], lambda: "\n".join(_as_text(*answer) for answer in answers))
    return Exit.NO if any(isinstance(answer, CastoffError) for _, answer in answers) else Exit.OK


def images_of(words: tuple[str, ...], files: tuple[Path, ...]) -> list[str]:
    """The images that are named, each once, in their order.

    Raises:
        Invalid: A file cannot be read, or is no list.
    """
    return list(dict.fromkeys([*words, *(name for file in files for name in _read(file))]))


def _as_json(name: str, answer: Preloaded | CastoffError) -> dict[str, Any]:
    if isinstance(answer, CastoffError):
        return {"reference": name, "ready": False, "error": {"code": answer.code.value, "what": answer.what, "hint": answer.hint}}
    image = str(answer.image.digest)
    return {"reference": name, "ready": True, "image": image, "way": answer.way.value, "fetched": answer.fetched}


def _as_text(name: str, answer: Preloaded | CastoffError) -> str:
    told = "failed" if isinstance(answer, CastoffError) else _WAYS[answer.way].format(fetched=size(answer.fetched))
    return f"{printable(name)}: {told}"


def _read(file: Path) -> list[str]:
    """The images of a file: one a line, what follows a ``#`` is for people."""
    try:
        with click.open_file(str(file), "rb") as opened:
            data = opened.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise Invalid(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > _FILE_LIMIT:
        raise Invalid(f"{file} is over {_FILE_LIMIT >> 20} MiB")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise Invalid(f"{file} is not UTF-8: {error}") from error
    return [name for line in lines if (name := line.partition("#")[0].strip())]
