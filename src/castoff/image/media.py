"""Media types: what OCI and Docker call manifests, configs and layers."""

from __future__ import annotations

from typing import Literal

__all__ = ["ACCEPT", "CONFIGS", "INDEXES", "MANIFESTS", "Compression", "compression_of", "is_foreign"]

Compression = Literal["none", "gzip", "zstd"]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_JSON = b"{}"
"""The blob of type OCI_EMPTY: what stands where a manifest must have a blob and has none (image spec 1.1, manifest.md)."""
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
ACCEPT = ", ".join([OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST])
"""The header Accept of whoever takes any manifest, or index of some."""

_LAYERS: dict[str, Compression] = {
    OCI_LAYER: "none",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}
_FOREIGN: dict[str, Compression] = {
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "none",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "none",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}


def compression_of(media_type: str) -> Compression | None:
    """How a layer of ``media_type`` is compressed; None: it is no layer that castoff knows."""
    return _LAYERS.get(media_type) or _FOREIGN.get(media_type)


def is_foreign(media_type: str) -> bool:
    """Whether a layer may lie outside of the registry that has its manifest (OCI: non-distributable)."""
    return media_type in _FOREIGN
