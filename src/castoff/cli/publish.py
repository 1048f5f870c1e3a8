"""``castoff publish``: makes an image's rootfs artifact and puts it into a registry, for every host to boot from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Command
from castoff.cli.globals import Globals
from castoff.cli.parameters import parse_platform
from castoff.cli.session import on_host
from castoff.cli.text import columns, size
from castoff.image.image import Platform

if TYPE_CHECKING:
    from castoff.artifact.publish import Published
    from castoff.host import Host

__all__ = ["command"]


@click.command(cls=Command)
@click.argument("image")
@click.option("--to", metavar="REPOSITORY", help="Put it there, HOST[:PORT]/PATH, instead of beside the image.")
@click.option("--index", is_flag=True, help="Push an index TAG-castoff too, which pins image and artifact together for copies.")
@click.option("--platform", type=parse_platform, metavar="OS/ARCH", help="Platform of the image.")
@click.option("--timeline", "timeline_file", metavar="FILE", help="Write the timeline as JSON; - draws it on stderr.")
@click.pass_obj
def command(
    shared: Globals, image: str, to: str | None, index: bool, platform: Platform | None, timeline_file: str | None
) -> None:
    """Publish the rootfs artifact of an image, so that any host can boot it before its data is there.

    What the registry has already is not sent again; a publish that broke goes on when it is repeated. Prints the
    artifact's digest.
    """

    def work(host: Host) -> Any:
        return host.publish(image, to=to, index=index, platform=platform)

    published: Published = on_host(shared, work, timeline_file=timeline_file, title=image)
    counts = {kind.value: count for kind, count in published.blobs.items()}
    answer = {
        "reference": published.image.reference,
        "image": str(published.image.digest),
        "platform": str(published.image.platform),
        "repository": published.repository,
        "artifact": str(published.artifact.digest),
        "signature": str(published.signature.digest),
        "signer": published.signer,
        "index": published.index,
        "blobs": counts,
        "sent": published.sent,
    }
    shared.answer(answer, lambda: _as_text(published, counts))


def _as_text(published: Published, counts: dict[str, int]) -> str:
    sent = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    facts = [
        ("artifact", f"{published.repository}@{published.artifact.digest}"),
        ("image", str(published.image.digest)),
        ("signer", published.signer),
        ("blobs", f"{sent}; {size(published.sent)} travelled"),
    ]
    if published.index:
        facts.append(("index", published.index))
    return columns(facts)
