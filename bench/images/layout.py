"""Writes an OCI image layout: gzip layers, config, manifest, index (OCI image spec 1.1, image-layout.md)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from isal import igzip

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["EPOCH", "Blob", "Layer", "Layout", "unpacked"]

EPOCH = 1_700_000_000
"""The time of everything made here, so that the same packages give the same digests."""


_BLOCK = 4096
_UNPACKED = "unpacked"
"""A file beside index.json; readers of layouts pass over what they do not know."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of the layout."""

    media_type: str
    digest: str
    size: int

    def descriptor(self) -> dict[str, Any]:
        """The blob as manifests name it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the layout: its blob, and what is inside."""

    blob: Blob
    diff_id: str


class _HashingWriter(io.RawIOBase):
    """A file that hashes what goes through it."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        """Hashes and passes on all of ``data``."""
        self.sha256.update(data)
        self._output.write(data)
        return memoryview(data).nbytes


@contextlib.contextmanager
def _docker_gzip(path: Path) -> Iterator[IO[bytes]]:
    """gzip level 6, as Docker and BuildKit push layers; pigz, so that two cores share the work."""
    with path.open("wb") as output, subprocess.Popen(["pigz", "-6", "-n", "-c"], stdin=subprocess.PIPE, stdout=output) as pigz:
        assert pigz.stdin is not None
        yield pigz.stdin
        pigz.stdin.close()
        if pigz.wait() != 0:
            raise RuntimeError(f"pigz ended with {pigz.returncode} while writing {path}")


@contextlib.contextmanager
def _fast_gzip(path: Path) -> Iterator[IO[bytes]]:
    """igzip level 1: for images whose making would otherwise take minutes."""
    with path.open("wb") as output, igzip.IGzipFile("", "wb", compresslevel=1, fileobj=output, mtime=0) as stream:  # type: ignore[no-untyped-call]
        yield cast("IO[bytes]", stream)


def _read(layout: Path, descriptor: dict[str, Any]) -> Any:
    return json.loads((layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes())


def unpacked(layout: Path) -> int:
    """Bytes that the files of all layers and their directories take on a disk of 4 KiB blocks."""
    return int((layout / _UNPACKED).read_text())


class Layout:
    """An OCI layout being written; ``finish`` makes it complete.

    Args:
        directory: Where; made if need be, must not hold another layout.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self.layers: list[Layer] = []
        self._files = 0
        self._directories: set[str] = set()

    def add_layer(self, fill: Callable[[tarfile.TarFile], None], *, fast: bool = False) -> Layer:
        """Adds the layer whose tar ``fill`` writes; ``fast`` trades size for time."""
        path = self._blobs / "incoming"
        with (_fast_gzip if fast else _docker_gzip)(path) as compressed:
            writer = _HashingWriter(compressed)
            with tarfile.open(fileobj=writer, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar:
                fill(tar)
                self._account(tar)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        path.rename(self._blobs / digest)
        blob = Blob("application/vnd.oci.image.layer.v1.tar+gzip", f"sha256:{digest}", size)
        self.layers.append(Layer(blob, f"sha256:{writer.sha256.hexdigest()}"))
        return self.layers[-1]

    def adopt(self, other: Path) -> None:
        """Adds the layers of the finished layout ``other``, by hard links: both images then share them."""
        manifest = _read(other, json.loads((other / "index.json").read_text())["manifests"][0])
        for row, diff_id in zip(manifest["layers"], _read(other, manifest["config"])["rootfs"]["diff_ids"], strict=True):
            blob = Blob(row["mediaType"], row["digest"], row["size"])
            name = blob.digest.removeprefix("sha256:")
            (self._blobs / name).hardlink_to(other / "blobs" / "sha256" / name)
            with tarfile.open(self._blobs / name) as tar:
                self._account(tar)
            self.layers.append(Layer(blob, diff_id))

    def finish(self, tag: str, process: dict[str, Any]) -> str:
        """Writes config, manifest and index; the manifest's digest.

        Args:
            tag: The image's name in the layout.
            process: The image config's ``config`` (``Cmd``, ``Env``, ...).
        """
        config = {
            "created": "2023-11-14T22:13:20Z",
            "architecture": "amd64",
            "os": "linux",
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
            "history": [{"created_by": "bench.images"} for _ in self.layers],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self._add_json("application/vnd.oci.image.config.v1+json", config).descriptor(),
            "layers": [layer.blob.descriptor() for layer in self.layers],
        }
        blob = self._add_json("application/vnd.oci.image.manifest.v1+json", manifest)
        entry = blob.descriptor() | {"annotations": {"org.opencontainers.image.ref.name": tag}}
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
        (self.directory / "index.json").write_text(json.dumps(index))
        (self.directory / _UNPACKED).write_text(str(self._files + _BLOCK * len(self._directories)))
        (self.directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return blob.digest

    def _account(self, tar: tarfile.TarFile) -> None:
        """Counts what a layer would take unpacked, as ``du`` counts it on ext4: a directory has a block at least."""
        for member in tar.getmembers():
            self._files += -(-member.size // _BLOCK) * _BLOCK
            if member.isdir():
                self._directories.add(member.name)

    def _add_json(self, media_type: str, value: object) -> Blob:
        data = json.dumps(value, sort_keys=True).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self._blobs / digest).write_bytes(data)
        return Blob(media_type, f"sha256:{digest}", len(data))
