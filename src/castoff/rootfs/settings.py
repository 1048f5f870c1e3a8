"""Settings of who provides root filesystems, and how."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

import msgspec

from castoff.disk.clone import CloneKind

__all__ = ["ContainerdSettings", "Lazy", "RootfsSettings"]


class Lazy(enum.StrEnum):
    """Whether a machine may start before all of its rootfs is here."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class ContainerdSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the running containerd is reached. Being there makes the provider mandatory: no containerd is then an error."""

    socket: str = "/run/containerd/containerd.sock"
    """Its gRPC socket."""
    namespace: str = "castoff"
    """The containerd namespace in which images, leases and snapshots are kept."""
    snapshotter: str = "overlayfs"
    """Which snapshotter unpacks. ``devmapper`` and ``blockfile`` snapshots are handed to the VMM as they are; of others an
    ext4 is made."""
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    """Seconds that one call (unpacking a layer is the longest) may take."""


class RootfsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who provides root filesystems, in which order, and of which size."""

    providers: tuple[str, ...] = ("prepared", "layered", "containerd")
    """Names from the entry point group ``castoff.rootfs_providers``, in the order in which they are asked."""
    size: Annotated[int, msgspec.Meta(ge=1 << 20)] = 8 << 30
    """Bytes of a root filesystem for which no size is asked. It is sparse: free space takes no disk. An image that would
    not leave half of it free gets the next power of two times this."""
    clone: CloneKind | None = None
    """How machines get their copy where they don't say: ``reflink``, ``overlay`` or ``copy``; null: reflink where the store
    can, else overlay."""
    lazy: Lazy = Lazy.AUTO
    """Whether machines start before their data is here, from a rootfs artifact whose key is trusted: ``auto``, where there is
    one and this host can; ``always``, or not at all; ``never``. A rootfs that is here already is never lazy."""
    front: Literal["auto", "fanotify", "fuse"] = "auto"
    """How a rootfs is served that is not all here: ``fanotify`` (Linux 6.14 and newer, a store with reflinks) gives a machine a
    plain file of its own, ``fuse`` a read-only base of an overlay; ``auto``: the first of them that works."""
    parallel: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """Layers converted at once; each takes up to about 60 MB of memory."""
    prepared: dict[str, str] = {}
    """Image reference, or manifest digest, -> an existing rootfs file or block device that is used in its place."""
    containerd: ContainerdSettings | None = None
    """Null: containerd is asked last and only where it runs at its usual socket."""
