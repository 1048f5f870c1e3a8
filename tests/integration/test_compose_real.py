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
from pathlib import Path

import pytest

from castoff.ext4.check.filesystem import check
from ext4_images import compose_file, convert_tar, fsck
from ext4_trees import Entry, differences, list_tree, mounted
from oci_builder import build_image, write_layout

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scratch(daemon_directory: Path) -> Iterator[Path]:
    directory = daemon_directory / "real"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def debian() -> Path:
    """An OCI layout of Debian packages with python3, as `make run` uses it."""
    made = subprocess.run([sys.executable, "-m", "bench.images", "medium"], cwd=ROOT, capture_output=True, text=True, check=True)
    return ROOT / made.stdout.split()[-1]


def wheels() -> list[Path]:
    """Packages as pip unpacked them from their wheels, among those that castoff needs."""
    found = [Path(directory) for directory in site.getsitepackages()]
    return [path for directory in found for name in ("numpy*", "msgspec*") for path in sorted(directory.glob(name))]


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


def test_a_debian_image_with_wheels_is_what_umoci_unpacks(debian: Path, scratch: Path) -> None:
    """Every path and attribute, every byte; the image's own python3 runs in it; composed again, it has the same bytes."""
    tars = [*layers_of(debian), wheel_layer()]
    write_layout(scratch / "layout", {"latest": build_image(tars)})
    command = ["umoci", "unpack", "--image", f"{scratch / 'layout'}:latest", str(scratch / "bundle")]
    subprocess.run(command, check=True, capture_output=True)
    layers = [convert_tar(tar, scratch / f"layer{number}") for number, tar in enumerate(tars)]
    image = scratch / "rootfs"
    composition = compose_file(image, layers, size=2 << 30)
    assert composition.entries > 5000
    assert fsck(image) == ""
    assert check(image) == []
    with mounted(image) as mount:
        entries = list_tree(mount)
        assert differences(entries, list_tree(scratch / "bundle/rootfs"), implied=implied(entries)) == []
    compose_file(scratch / "again", layers, size=2 << 30)
    subprocess.run(["cmp", str(image), str(scratch / "again")], check=True)
    with mounted(image, options="rw") as mount:
        code = "import sys, json, zlib; print(sys.version_info[0])"
        said = subprocess.run(["chroot", str(mount), "python3", "-c", code], capture_output=True, text=True, check=True)
        assert said.stdout == "3\n"
    assert fsck(image) == ""


def test_a_debian_layer_and_wheels_are_what_gnu_tar_extracts(debian: Path, scratch: Path) -> None:
    """Each alone: where a later archive puts something into a directory, GNU tar changes its time, and image unpackers do not."""
    command = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "--delay-directory-restore", "-xp"]
    for number, tar in enumerate((max(layers_of(debian), key=len), wheel_layer())):
        tree = scratch / f"tree{number}"
        tree.mkdir()
        subprocess.run([*command, "-C", str(tree)], input=tar, check=True)
        image = scratch / f"rootfs{number}"
        compose_file(image, [convert_tar(tar, scratch / f"layer{number}")])
        with mounted(image) as mount:
            entries = list_tree(mount)
            assert differences(entries, list_tree(tree), implied=implied(entries)) == []
