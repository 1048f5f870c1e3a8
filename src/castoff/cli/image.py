"""``castoff image``: images, and what of them is here."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Group
from castoff.cli.exits import printable
from castoff.cli.globals import Globals
from castoff.cli.parameters import parse_platform
from castoff.cli.session import on_host
from castoff.cli.text import columns, size
from castoff.image.image import Platform

if TYPE_CHECKING:
    from castoff.host import InspectedImage

__all__ = ["command"]


@click.group(cls=Group)
def command() -> None:
    """Look at images and what of them is here."""


@command.command()
@click.argument("image")
@click.option("--platform", type=parse_platform, metavar="OS/ARCH", help="Platform of the image.")
@click.pass_obj
def inspect(shared: Globals, image: str, platform: Platform | None) -> None:
    """Show an image's digest, platform, configuration and layers, and which layers are here. Fetches none."""
    found = on_host(shared, lambda host: host.inspect(image, platform=platform))
    shared.answer(_as_json(found), lambda: _as_text(found))


def _as_json(found: InspectedImage) -> dict[str, Any]:
    image, config = found.image, found.image.config
    return {
        "reference": image.reference,
        "digest": str(image.digest),
        "platform": str(image.platform),
        "size": sum(layer.size for layer in image.layers),
        "config": {
            "entrypoint": list(config.entrypoint),
            "cmd": list(config.cmd),
            "env": list(config.env),
            "user": config.user,
            "working_dir": config.working_dir,
            "stop_signal": config.stop_signal,
            "exposed_ports": list(config.exposed_ports),
            "labels": dict(config.labels),
        },
        "layers": [
            {
                "digest": str(layer.digest),
                "diff_id": str(layer.diff_id),
                "size": layer.size,
                "media_type": layer.media_type,
                "present": present,
            }
            for layer, present in zip(image.layers, found.present, strict=True)
        ],
    }


def _as_text(found: InspectedImage) -> str:
    image, config = found.image, found.image.config
    facts = [
        ("reference", image.reference),
        ("digest", str(image.digest)),
        ("platform", str(image.platform)),
        (
            "size",
            f"{size(sum(layer.size for layer in image.layers))} in {len(image.layers)} layers, {sum(found.present)} of them here",
        ),
        ("entrypoint", shlex.join(config.entrypoint)),
        ("command", shlex.join(config.cmd)),
        ("user", config.user),
        ("directory", config.working_dir),
        ("ports", " ".join(config.exposed_ports)),
    ]
    layers = [
        (str(layer.diff_id), size(layer.size), "here" if present else "-", layer.media_type)
        for layer, present in zip(image.layers, found.present, strict=True)
    ]
    table = columns(layers, heads=("LAYER (DIFF ID)", "SIZE", "HERE", "TYPE"), right=(1,))
    known = columns([(name, printable(value)) for name, value in facts if value])
    return f"{known}\n\n{table}"
