"""Real trees: a Debian from its packages, and Python packages from wheels, composed and compared file by file."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import site
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from castoff.ext4.check.filesystem import check
from ext4_images import Converted, compose_file, convert_tar, fsck
from ext4_trees import Entry, differences, list_tree, mounted
from oci_builder import build_image, write_layout

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Real:
    """Layers as tars, and converted; the last is of Python packages."""

    tars: list[bytes] = field(repr=False)
    layers: list[Converted]


@pytest.fixture(scope="module")
def real(xfs_mount: Path) -> Iterator[Real]:
    """An image of Debian packages with python3, as `make run` uses it, with one more layer, of wheels."""
    made = subprocess.run([sys.executable, "-m", "bench.images", "medium"], cwd=ROOT, capture_output=True, text=True, check=True)
    directory = xfs_mount / "real"
    tars = [*layers_of(ROOT / made.stdout.split()[-1]), wheel_layer()]
    yield Real(tars, [convert_tar(tar, directory / str(number)) for number, tar in enumerate(tars)])
    shutil.rmtree(directory)


def wheels() -> list[Path]:
    """Packages as pip unpacked them from their wheels, among those that castoff needs."""
    found = [Path(directory) for directory in site.getsitepackages()]
    return [
        path
        for directory in found
        for name in ("aiohttp*", "msgspec*", "pygments*", "rich*")
        for path in sorted(directory.glob(name))
    ]


def layers_of(layout: Path) -> Iterator[bytes]:
    """A layout's image's layers, as tars."""

    def blob(digest: str) -> bytes:
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    document = json.loads(blob(json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]))
    if "manifests" in document:
        document = json.loads(blob(document["manifests"][0]["digest"]))
    for layer in document["layers"]:
        yield gzip.decompress(blob(layer["digest"])) if layer["mediaType"].endswith("gzip") else blob(layer["digest"])


def wheel_layer() -> bytes:
    """The tar of a layer of such packages."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        # An unpacker that makes a directory that no entry names leaves its parent with another time, so this one is named.
        directory = tarfile.TarInfo("usr/local/lib/wheels")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)
        for path in wheels():
            tar.add(path, f"usr/local/lib/wheels/{path.name}")
    return data.getvalue()


def implied(entries: Mapping[bytes, Entry]) -> frozenset[bytes]:
    """Directories that no entry describes, and the root."""
    unsaid = (path for path, entry in entries.items() if (entry.mode, entry.uid, entry.mtime) == (0o40755, 0, 0))
    return frozenset((b"", *unsaid))


def test_a_debian_image_with_wheels_is_what_umoci_unpacks(real: Real, scratch_xfs: Path) -> None:
    """Every path and attribute, every byte; the image's own python3 runs in it; composed again, it has the same bytes."""
    write_layout(scratch_xfs / "layout", {"latest": build_image(real.tars, compression="none")})
    command = ["umoci", "unpack", "--image", f"{scratch_xfs / 'layout'}:latest", str(scratch_xfs / "bundle")]
    subprocess.run(command, check=True, capture_output=True)
    image = scratch_xfs / "rootfs"
    composition = compose_file(image, real.layers)
    assert composition.entries > 5000
    assert fsck(image) == ""
    assert check(image) == []
    with mounted(image) as mount:
        entries = list_tree(mount)
        assert differences(entries, list_tree(scratch_xfs / "bundle/rootfs"), implied=implied(entries)) == []
    compose_file(scratch_xfs / "again", real.layers)
    metadata = ["cmp", "-n", str(composition.layout.front * 4096), str(image), str(scratch_xfs / "again")]
    subprocess.run(metadata, check=True)
    with mounted(image, options="rw") as mount:
        code = "import sys, json, zlib; print(sys.version_info[0])"
        said = subprocess.run(["chroot", str(mount), "python3", "-c", code], capture_output=True, text=True, check=True)
        assert said.stdout == "3\n"
    assert fsck(image) == ""


def test_a_debian_layer_and_wheels_are_what_gnu_tar_extracts(real: Real, scratch_xfs: Path) -> None:
    """Each alone: where a later archive puts something into a directory, GNU tar changes its time, and image unpackers do not."""
    command = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "--delay-directory-restore", "-xp"]
    largest = max(range(len(real.tars) - 1), key=lambda number: len(real.tars[number]))
    for number in (largest, -1):
        tree = scratch_xfs / f"tree{number}"
        tree.mkdir()
        subprocess.run([*command, "-C", str(tree)], input=real.tars[number], check=True)
        image = scratch_xfs / f"rootfs{number}"
        compose_file(image, [real.layers[number]])
        with mounted(image) as mount:
            entries = list_tree(mount)
            assert differences(entries, list_tree(tree), implied=implied(entries)) == []
