"""``python -m bench.images NAME...``: makes images that are not there yet, and prints where they lie.

Each lies in ``.cache/images/NAME`` (``CASTOFF_IMAGES`` says otherwise), an OCI layout with the tag ``latest``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.images import debian, synthetic, wheels
from bench.images.layout import Layout

_CACHE = Path(os.environ.get("CASTOFF_IMAGES", ".cache/images"))
_PACKAGES = ("python3", "python3-requests", "python3-yaml")
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _small(layout: Layout, scratch: Path) -> None:
    layout.add_layer(debian.busybox)
    layout.finish("latest", {"Cmd": ["sh"], "Env": ["PATH=/bin"]})


def _medium(layout: Layout, scratch: Path) -> None:
    for fill in debian.layers(*debian.trees(scratch, _PACKAGES)):
        layout.add_layer(fill)
    layout.finish("latest", {"Cmd": ["python3"], "Env": [_PATH, "LANG=C.UTF-8"]})


def _big(layout: Layout, scratch: Path) -> None:
    layout.adopt(make("medium"))
    wheels.install(scratch / "wheels")
    layout.add_layer(wheels.filler(scratch / "wheels"))
    layout.finish("latest", {"Cmd": ["python3"], "Env": [_PATH, "LANG=C.UTF-8"], "WorkingDir": "/root"})


def _synthetic(size: int) -> Callable[[Layout, Path], None]:
    def make(layout: Layout, scratch: Path) -> None:
        layout.add_layer(synthetic.filler(size), fast=True)
        layout.finish("latest", {"Cmd": ["true"]})

    return make


def _many(layout: Layout, scratch: Path) -> None:
    """200,000 entries in three layers, the third of which replaces a tenth of the first."""
    for first, count in ((0, 150_000), (150_000, 45_000), (0, 15_000)):
        layout.add_layer(synthetic.small_files(first, count), fast=True)
    layout.finish("latest", {"Cmd": ["true"]})


def _fleet(number: int) -> Callable[[Layout, Path], None]:
    """Python, and 20,000 files that no other image of the fleet has."""

    def make_one(layout: Layout, scratch: Path) -> None:
        layout.adopt(make("medium"))
        layout.add_layer(synthetic.small_files(200_000 + 20_000 * number, 20_000), fast=True)
        layout.finish("latest", {"Cmd": ["python3"], "Env": [_PATH]})

    return make_one


def _grown(layout: Layout, scratch: Path) -> None:
    """What ``small`` has, and 100 MB that nobody reads."""
    layout.adopt(make("small"))
    layout.add_layer(synthetic.filler(100_000_000), fast=True)
    layout.finish("latest", {"Cmd": ["sh"], "Env": ["PATH=/bin"]})


FLEET = tuple(f"fleet-{number}" for number in range(5))
IMAGES = {
    "small": _small,
    "medium": _medium,
    "big": _big,
    "many": _many,
    "100mb": _synthetic(100_000_000),
    "1gb": _synthetic(1_000_000_000),
    "10gb": _synthetic(10_000_000_000),
    "grown": _grown,
    **{name: _fleet(number) for number, name in enumerate(FLEET)},
}


def make(name: str) -> Path:
    """The layout of the image ``name``, made now if need be; it appears by rename, so a half-made one is never used."""
    path = _CACHE / name
    if path.exists():
        return path
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=_CACHE) as directory:
        incoming = Path(directory, "layout")
        IMAGES[name](Layout(incoming), Path(directory))
        shutil.move(incoming, path)
    return path


def main(names: list[str]) -> int:
    """Makes the images named; the exit status."""
    unknown = sorted(set(names) - IMAGES.keys())
    if unknown or not names:
        print(f"usage: python -m bench.images {'|'.join(IMAGES)} ...", file=sys.stderr)
        return 2
    for name in names:
        try:
            print(make(name))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"image {name} could not be made: {error}; `make setup` installs the tools", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
