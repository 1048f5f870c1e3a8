"""The messages of containerd's API (v1) that castoff sends and reads; fields that it has no use for are left out.

Source: https://github.com/containerd/containerd/tree/main/api, the same numbers from 1.2 to 2.x. Timestamps are not read.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

__all__ = [
    "ApplyRequest",
    "ApplyResponse",
    "CommitSnapshotRequest",
    "ContentInfo",
    "ContentUpdateRequest",
    "CreateImageRequest",
    "CreateLeaseRequest",
    "DeleteLeaseRequest",
    "Descriptor",
    "Empty",
    "FieldMask",
    "ImageRecord",
    "Mount",
    "Mounts",
    "SnapshotInfo",
    "SnapshotKey",
    "SnapshotRequest",
    "StatSnapshotResponse",
    "UpdateImageRequest",
    "VersionResponse",
    "WriteAction",
    "WriteContentRequest",
    "WriteContentResponse",
]


def _none() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Empty:
    """google.protobuf.Empty; also what of an answer nobody reads."""


@dataclass(frozen=True, slots=True)
class FieldMask:
    """google.protobuf.FieldMask."""

    paths: Annotated[tuple[str, ...], 1] = ()


@dataclass(frozen=True, slots=True)
class Descriptor:
    """types/descriptor.proto"""

    media_type: Annotated[str, 1] = ""
    digest: Annotated[str, 2] = ""
    size: Annotated[int, 3] = 0


@dataclass(frozen=True, slots=True)
class Mount:
    """types/mount.proto"""

    type: Annotated[str, 1] = ""
    source: Annotated[str, 2] = ""
    target: Annotated[str, 3] = ""
    options: Annotated[tuple[str, ...], 4] = ()


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """services/content/v1: Info"""

    digest: Annotated[str, 1] = ""
    size: Annotated[int, 2] = 0
    labels: Annotated[Mapping[str, str], 5] = field(default_factory=_none)


@dataclass(frozen=True, slots=True)
class ContentUpdateRequest:
    info: Annotated[ContentInfo | None, 1] = None
    update_mask: Annotated[FieldMask | None, 2] = None


class WriteAction(enum.IntEnum):
    STAT = 0
    WRITE = 1
    COMMIT = 2


@dataclass(frozen=True, slots=True)
class WriteContentRequest:
    action: Annotated[int, 1] = WriteAction.STAT
    ref: Annotated[str, 2] = ""
    total: Annotated[int, 3] = 0
    expected: Annotated[str, 4] = ""
    offset: Annotated[int, 5] = 0
    data: Annotated[bytes, 6] = b""
    labels: Annotated[Mapping[str, str], 7] = field(default_factory=_none)


@dataclass(frozen=True, slots=True)
class WriteContentResponse:
    action: Annotated[int, 1] = WriteAction.STAT
    offset: Annotated[int, 4] = 0
    total: Annotated[int, 5] = 0
    digest: Annotated[str, 6] = ""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """services/images/v1: Image"""

    name: Annotated[str, 1] = ""
    labels: Annotated[Mapping[str, str], 2] = field(default_factory=_none)
    target: Annotated[Descriptor | None, 3] = None


@dataclass(frozen=True, slots=True)
class CreateImageRequest:
    image: Annotated[ImageRecord | None, 1] = None


@dataclass(frozen=True, slots=True)
class UpdateImageRequest:
    image: Annotated[ImageRecord | None, 1] = None
    update_mask: Annotated[FieldMask | None, 2] = None


@dataclass(frozen=True, slots=True)
class CreateLeaseRequest:
    id: Annotated[str, 1] = ""
    labels: Annotated[Mapping[str, str], 3] = field(default_factory=_none)


@dataclass(frozen=True, slots=True)
class DeleteLeaseRequest:
    id: Annotated[str, 1] = ""
    sync: Annotated[bool, 2] = False


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """services/snapshots/v1: Prepare and View"""

    snapshotter: Annotated[str, 1] = ""
    key: Annotated[str, 2] = ""
    parent: Annotated[str, 3] = ""
    labels: Annotated[Mapping[str, str], 4] = field(default_factory=_none)


@dataclass(frozen=True, slots=True)
class Mounts:
    """What Prepare, View and Mounts answer."""

    mounts: Annotated[tuple[Mount, ...], 1] = ()


@dataclass(frozen=True, slots=True)
class SnapshotKey:
    """Mounts, Stat and Remove ask with it."""

    snapshotter: Annotated[str, 1] = ""
    key: Annotated[str, 2] = ""


@dataclass(frozen=True, slots=True)
class CommitSnapshotRequest:
    snapshotter: Annotated[str, 1] = ""
    name: Annotated[str, 2] = ""
    key: Annotated[str, 3] = ""
    labels: Annotated[Mapping[str, str], 4] = field(default_factory=_none)


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    name: Annotated[str, 1] = ""
    parent: Annotated[str, 2] = ""
    kind: Annotated[int, 3] = 0
    labels: Annotated[Mapping[str, str], 6] = field(default_factory=_none)


@dataclass(frozen=True, slots=True)
class StatSnapshotResponse:
    info: Annotated[SnapshotInfo | None, 1] = None


@dataclass(frozen=True, slots=True)
class ApplyRequest:
    """services/diff/v1"""

    diff: Annotated[Descriptor | None, 1] = None
    mounts: Annotated[tuple[Mount, ...], 2] = ()


@dataclass(frozen=True, slots=True)
class ApplyResponse:
    applied: Annotated[Descriptor | None, 1] = None


@dataclass(frozen=True, slots=True)
class VersionResponse:
    version: Annotated[str, 1] = ""
    revision: Annotated[str, 2] = ""
