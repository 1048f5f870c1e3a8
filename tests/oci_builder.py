"""Builds OCI images for tests, in memory, from Python's own tarfile: layers, manifests, indexes, layouts, archives.

    layer = LayerTar().directory("etc").file("etc/motd", b"hello\\n").whiteout("etc/old")
    image = build_image([layer, b"<a raw tar>"], cmd=["/bin/sh"], compression="zstd")
    write_layout(tmp_path / "layout", {"latest": image})

Everything is deterministic: the same calls give the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import zstandard

__all__ = [
    "EMPTY_TAR",
    "Blob",
    "BuiltImage",
    "BuiltIndex",
    "LayerTar",
    "build_image",
    "build_index",
    "compress",
    "with_manifest",
    "write_docker_archive",
    "write_layout",
    "write_oci_archive",
]

Compression = Literal["none", "gzip", "zstd"]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

EMPTY_TAR = bytes(10240)
"""A tar without entries."""


class LayerTar:
    """A layer's tar, entry by entry; each method returns the builder, so that calls chain.

    Args:
        format: ``tarfile.PAX_FORMAT`` (default), ``GNU_FORMAT`` or ``USTAR_FORMAT``.
    """

    def __init__(self, *, format: int = tarfile.PAX_FORMAT) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self._done: bytes | None = None

    def add(self, info: tarfile.TarInfo, data: bytes = b"") -> LayerTar:
        """Adds any entry as it is."""
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def _entry(
        self,
        name: str | bytes,
        kind: bytes,
        *,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime: float = 0,
        xattrs: Mapping[str, bytes] | None = None,
        link: str | bytes = "",
        data: bytes = b"",
        device: tuple[int, int] = (0, 0),
    ) -> LayerTar:
        info = tarfile.TarInfo(_text(name))
        info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, uid, gid, mtime
        info.linkname = _text(link)
        info.size = len(data)
        info.devmajor, info.devminor = device
        info.pax_headers = {f"SCHILY.xattr.{key}": _text(value) for key, value in sorted((xattrs or {}).items())}
        return self.add(info, data)

    def file(self, name: str | bytes, data: bytes = b"", *, mode: int = 0o644, **attributes: Any) -> LayerTar:
        """A regular file. Attributes everywhere: uid, gid, mtime (float: pax), xattrs (name -> bytes)."""
        return self._entry(name, tarfile.REGTYPE, mode=mode, data=data, **attributes)

    def directory(self, name: str | bytes, *, mode: int = 0o755, **attributes: Any) -> LayerTar:
        return self._entry(name, tarfile.DIRTYPE, mode=mode, **attributes)

    def symlink(self, name: str | bytes, target: str | bytes, **attributes: Any) -> LayerTar:
        return self._entry(name, tarfile.SYMTYPE, mode=0o777, link=target, **attributes)

    def hardlink(self, name: str | bytes, target: str | bytes, **attributes: Any) -> LayerTar:
        return self._entry(name, tarfile.LNKTYPE, mode=0o644, link=target, **attributes)

    def fifo(self, name: str | bytes, *, mode: int = 0o644, **attributes: Any) -> LayerTar:
        return self._entry(name, tarfile.FIFOTYPE, mode=mode, **attributes)

    def character(self, name: str | bytes, major: int, minor: int, *, mode: int = 0o600, **attributes: Any) -> LayerTar:
        return self._entry(name, tarfile.CHRTYPE, mode=mode, device=(major, minor), **attributes)

    def block(self, name: str | bytes, major: int, minor: int, *, mode: int = 0o600, **attributes: Any) -> LayerTar:
        return self._entry(name, tarfile.BLKTYPE, mode=mode, device=(major, minor), **attributes)

    def whiteout(self, path: str) -> LayerTar:
        """Hides ``path`` of lower layers."""
        parent, slash, name = path.rpartition("/")
        return self.file(f"{parent}{slash}.wh.{name}")

    def opaque(self, directory: str) -> LayerTar:
        """Hides what lower layers have in ``directory`` ("" is the root)."""
        return self.file(f"{directory}/.wh..wh..opq".lstrip("/"))

    def raw(self, data: bytes) -> LayerTar:
        """Bytes at the tar's present end, as they are: headers that tarfile would never write."""
        self._buffer.write(data)
        self._tar.offset += len(data)
        return self

    def bytes(self) -> bytes:
        """The whole tar, with its end marker; nothing can be added after it."""
        if self._done is None:
            self._tar.close()
            self._done = self._buffer.getvalue()
        return self._done


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


@dataclass(frozen=True)
class Blob:
    """Content with its descriptor."""

    data: bytes = field(repr=False)
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest_of(self.data)

    def descriptor(self, **more: Any) -> dict[str, Any]:
        row: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data), **more}
        if self.annotations:
            row["annotations"] = dict(self.annotations)
        return row


@dataclass(frozen=True)
class BuiltImage:
    """One image: its manifest, config and layers, and the layers' diffIDs."""

    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]
    diff_ids: tuple[str, ...]
    tars: tuple[bytes, ...] = field(repr=False)
    platform: Mapping[str, str]

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def blobs(self) -> list[Blob]:
        return [self.manifest, self.config, *self.layers]


@dataclass(frozen=True)
class BuiltIndex:
    """An index of images (or of further indexes)."""

    manifest: Blob
    members: tuple[BuiltImage | BuiltIndex, ...]

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def blobs(self) -> list[Blob]:
        return [self.manifest, *(blob for member in self.members for blob in member.blobs())]


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compress(tar: bytes, compression: Compression = "gzip", *, members: int = 1) -> bytes:
    """``tar`` compressed, as ``members`` gzip members or zstd frames one after another."""
    if compression == "none":
        return tar
    step = max(1, -(-len(tar) // members))
    pieces = [tar[start : start + step] for start in range(0, len(tar), step)] or [b""]
    if compression == "gzip":
        return b"".join(gzip.compress(piece, 6, mtime=0) for piece in pieces)
    return b"".join(zstandard.ZstdCompressor(level=3).compress(piece) for piece in pieces)


def build_image(
    layers: Sequence[LayerTar | bytes],
    *,
    compression: Compression = "gzip",
    members: int = 1,
    docker: bool = False,
    platform: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    **process: Any,
) -> BuiltImage:
    """Builds an image.

    Args:
        layers: Tars, the lowest first.
        compression: Of every layer.
        members: gzip members or zstd frames in each layer.
        docker: Docker schema 2 media types in place of OCI's.
        platform: ``{"os": ..., "architecture": ..., "variant": ...}``; linux/amd64 by default.
        config: Further (or other) top-level fields of the image config.
        process: The config's process: entrypoint, cmd, env, user, working_dir, stop_signal, exposed_ports, labels.
    """
    tars = tuple(layer.bytes() if isinstance(layer, LayerTar) else layer for layer in layers)
    diff_ids = tuple(digest_of(tar) for tar in tars)
    platform = dict(platform or {"os": "linux", "architecture": "amd64"})
    document = {
        **platform,
        "config": _process(**process),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": f"layer {n}"} for n in range(len(tars))],
        **(config or {}),
    }
    config_blob = Blob(_json(document), DOCKER_CONFIG if docker else OCI_CONFIG)
    blobs = tuple(Blob(compress(tar, compression, members=members), layer_type(compression, docker=docker)) for tar in tars)
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config_blob.descriptor(),
        "layers": [blob.descriptor() for blob in blobs],
    }
    return BuiltImage(Blob(_json(manifest), media_type), config_blob, blobs, diff_ids, tars, platform)


def with_manifest(image: BuiltImage, manifest: Mapping[str, Any] | bytes) -> BuiltImage:
    """The image with another manifest: fields replaced (None: removed), or raw bytes."""
    if not isinstance(manifest, bytes):
        document = {key: value for key, value in (json.loads(image.manifest.data) | manifest).items() if value is not None}
        manifest = _json(document)
    return replace(image, manifest=Blob(manifest, image.manifest.media_type))


def layer_type(compression: Compression, *, docker: bool = False) -> str:
    """The media type of a layer."""
    if docker:
        return DOCKER_LAYER + {"none": "", "gzip": ".gzip", "zstd": ".zstd"}[compression]
    return OCI_LAYER + {"none": "", "gzip": "+gzip", "zstd": "+zstd"}[compression]


def _process(
    *,
    entrypoint: Sequence[str] = (),
    cmd: Sequence[str] = (),
    env: Sequence[str] = (),
    user: str = "",
    working_dir: str = "",
    stop_signal: str = "",
    exposed_ports: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "Entrypoint": list(entrypoint),
        "Cmd": list(cmd),
        "Env": list(env),
        "User": user,
        "WorkingDir": working_dir,
        "StopSignal": stop_signal,
        "ExposedPorts": {port: {} for port in exposed_ports},
        "Labels": dict(labels or {}),
    }
    return {key: value for key, value in fields.items() if value}


def build_index(
    members: Sequence[BuiltImage | BuiltIndex],
    *,
    docker: bool = False,
    extra: Sequence[Mapping[str, Any]] = (),
) -> BuiltIndex:
    """Builds an index; ``extra`` are further raw descriptors (attestations, unknown things), put first."""
    rows: list[Mapping[str, Any]] = list(extra)
    for member in members:
        more = {"platform": dict(member.platform)} if isinstance(member, BuiltImage) else {}
        rows.append(member.manifest.descriptor(**more))
    media_type = DOCKER_LIST if docker else OCI_INDEX
    return BuiltIndex(Blob(_json({"schemaVersion": 2, "mediaType": media_type, "manifests": rows}), media_type), tuple(members))


def write_layout(directory: Path, images: Mapping[str, BuiltImage | BuiltIndex]) -> Path:
    """Writes an OCI layout; ``images`` are its tags ("" for an untagged one). Adds blobs to what is there."""
    for name, data in _layout_files(images).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def write_oci_archive(path: Path, images: Mapping[str, BuiltImage | BuiltIndex], *, mode: str = "w") -> Path:
    """Writes an OCI layout as a tar; ``mode`` as of tarfile (``w:gz``)."""
    _write_tar(path, _layout_files(images), mode)
    return path


def _layout_files(images: Mapping[str, BuiltImage | BuiltIndex]) -> dict[str, bytes]:
    rows = []
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"})}
    for tag, image in images.items():
        more: dict[str, Any] = {"annotations": {"org.opencontainers.image.ref.name": tag}} if tag else {}
        rows.append(image.manifest.descriptor(**more))
        files |= {f"blobs/sha256/{blob.digest.removeprefix('sha256:')}": blob.data for blob in image.blobs()}
    files["index.json"] = _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows})
    return files


def write_docker_archive(path: Path, images: Mapping[str, BuiltImage], *, mode: str = "w") -> Path:
    """Writes what ``docker save`` wrote before Docker 25; ``images`` are repository tags (``name:tag``)."""
    files: dict[str, bytes] = {}
    rows = []
    for tag, image in images.items():
        names = [f"{diff_id.removeprefix('sha256:')}/layer.tar" for diff_id in image.diff_ids]
        config = f"{image.config.digest.removeprefix('sha256:')}.json"
        rows.append({"Config": config, "RepoTags": [tag] if tag else None, "Layers": names})
        files |= dict(zip(names, image.tars, strict=True)) | {config: image.config.data}
    files["manifest.json"] = _json(rows)
    _write_tar(path, files, mode)
    return path


def _write_tar(path: Path, files: Mapping[str, bytes], mode: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _json(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
