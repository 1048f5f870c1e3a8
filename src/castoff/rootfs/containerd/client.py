"""Calls to containerd, typed, within a namespace and perhaps a lease; gRPC's errors become castoff's here."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from castoff.errors import CastoffError, Conflict, Internal, Invalid, NotFound, Unauthorized, Unavailable, Unsupported
from castoff.rootfs.containerd import messages as m
from castoff.rootfs.containerd.wire import decode, encode
from castoff.rootfs.settings import ContainerdSettings

__all__ = ["Client", "connected", "translated"]

R = TypeVar("R")

_OPTIONS = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    # The path of a unix socket is no host name, and Go's HTTP/2 server refuses it as one.
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
]

_CLASSES: dict[grpc.StatusCode, type[CastoffError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.INVALID_ARGUMENT: Invalid,
    grpc.StatusCode.OUT_OF_RANGE: Invalid,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.PERMISSION_DENIED: Unauthorized,
    grpc.StatusCode.UNAUTHENTICATED: Unauthorized,
}


class Client:
    """One connection to a containerd.

    Args:
        channel: To its socket.
        settings: Namespace and time limits.
        lease: What is made is kept for this lease; empty: for none.
    """

    def __init__(self, channel: grpc.aio.Channel, settings: ContainerdSettings, *, lease: str = "") -> None:
        self._channel = channel
        self._settings = settings
        self._metadata = [("containerd-namespace", settings.namespace)]
        if lease:
            self._metadata.append(("containerd-lease", lease))

    def under(self, lease: str) -> Client:
        """The same connection, for what that lease keeps."""
        return Client(self._channel, self._settings, lease=lease)

    async def version(self) -> str:
        """containerd's version: asks whether it is there at all."""
        answer = await self._call("version", "Version/Version", m.Empty(), m.VersionResponse, timeout=10)
        return answer.version

    async def label_content(self, digest: str, labels: dict[str, str]) -> None:
        """Sets labels of a blob, and leaves its others."""
        mask = m.FieldMask(tuple(f"labels.{key}" for key in labels))
        await self._call("content", "Content/Update", m.ContentUpdateRequest(m.ContentInfo(digest, labels=labels), mask), m.Empty)

    @asynccontextmanager
    async def write_stream(self) -> AsyncIterator[Any]:
        """A stream of WriteContentRequests, each answered by a WriteContentResponse; cancelled at the block's end."""
        method = self._channel.stream_stream(
            "/containerd.services.content.v1.Content/Write",
            request_serializer=encode,
            response_deserializer=partial(decode, m.WriteContentResponse),
        )
        stream = method(metadata=self._metadata, timeout=self._settings.timeout)
        try:
            yield stream
        finally:
            stream.cancel()

    async def put_image(self, image: m.ImageRecord) -> None:
        """Creates an image record, or points the one of that name to the new target."""
        try:
            await self._call("images", "Images/Create", m.CreateImageRequest(image), m.Empty)
        except Conflict:
            await self._call("images", "Images/Update", m.UpdateImageRequest(image, m.FieldMask(("target",))), m.Empty)

    async def create_lease(self, lease: str, labels: dict[str, str]) -> None:
        """Creates a lease; one that is there already will do."""
        try:
            await self._call("leases", "Leases/Create", m.CreateLeaseRequest(lease, labels), m.Empty)
        except Conflict:
            return

    async def delete_lease(self, lease: str, *, wait: bool = False) -> None:
        """Deletes a lease. Idempotent.

        Args:
            lease: Its id.
            wait: Return when what it alone kept was collected, too.
        """
        try:
            await self._call("leases", "Leases/Delete", m.DeleteLeaseRequest(lease, wait), m.Empty)
        except NotFound:
            return

    async def stat_snapshot(self, key: str) -> m.SnapshotInfo | None:
        """A snapshot; None where there is none."""
        try:
            request = m.SnapshotKey(self._settings.snapshotter, key)
            answer = await self._call("snapshots", "Snapshots/Stat", request, m.StatSnapshotResponse)
        except NotFound:
            return None
        return answer.info

    async def prepare(self, key: str, parent: str, labels: dict[str, str]) -> tuple[m.Mount, ...]:
        """A writable snapshot's mounts.

        Raises:
            Conflict: There is one of that key.
        """
        request = m.SnapshotRequest(self._settings.snapshotter, key, parent, labels)
        return (await self._call("snapshots", "Snapshots/Prepare", request, m.Mounts)).mounts

    async def view(self, key: str, parent: str, labels: dict[str, str]) -> tuple[m.Mount, ...]:
        """A read-only snapshot's mounts."""
        request = m.SnapshotRequest(self._settings.snapshotter, key, parent, labels)
        return (await self._call("snapshots", "Snapshots/View", request, m.Mounts)).mounts

    async def commit(self, name: str, key: str, labels: dict[str, str]) -> None:
        """Makes a writable snapshot a parent for others.

        Raises:
            Conflict: There is one of that name.
        """
        request = m.CommitSnapshotRequest(self._settings.snapshotter, name, key, labels)
        await self._call("snapshots", "Snapshots/Commit", request, m.Empty)

    async def remove_snapshot(self, key: str) -> None:
        """Removes a snapshot. Idempotent."""
        try:
            request = m.SnapshotKey(self._settings.snapshotter, key)
            await self._call("snapshots", "Snapshots/Remove", request, m.Empty)
        except NotFound:
            return

    async def apply(self, layer: m.Descriptor, mounts: tuple[m.Mount, ...]) -> str:
        """Unpacks a layer of the content store into mounts; the digest of what was unpacked: its diffID."""
        answer = await self._call("diff", "Diff/Apply", m.ApplyRequest(layer, mounts), m.ApplyResponse)
        return answer.applied.digest if answer.applied is not None else ""

    async def _call(self, package: str, method: str, request: Any, answer: type[R], *, timeout: float | None = None) -> R:
        path = f"/containerd.services.{package}.v1.{method}"
        call = self._channel.unary_unary(path, request_serializer=encode, response_deserializer=partial(decode, answer))
        try:
            found: R = await call(request, metadata=self._metadata, timeout=timeout or self._settings.timeout)
        except grpc.aio.AioRpcError as error:
            raise translated(error, method) from error
        return found


def translated(error: grpc.aio.AioRpcError, what: str) -> CastoffError:
    """castoff's error for one of gRPC's."""
    said = (error.details() or "no details").splitlines()[0][:300]
    message = f"containerd: {what}: {said}"
    kind = _CLASSES.get(error.code())
    if kind is not None:
        return kind(message)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable(message, hint="raise rootfs.containerd.timeout, or see containerd's log")
    if error.code() is grpc.StatusCode.INTERNAL and "Exception deserializing" in said:
        return Internal(message)
    return Unavailable(message, hint="see containerd's log (journalctl -u containerd)")


@asynccontextmanager
async def connected(settings: ContainerdSettings) -> AsyncIterator[Client]:
    """A connection for the block.

    Raises:
        NotFound, Unauthorized: There is no socket, or it is not ours to use.
        Unavailable: Nobody answers at the socket.
    """
    _check_socket(Path(settings.socket))
    async with grpc.aio.insecure_channel(f"unix:{settings.socket}", options=_OPTIONS) as channel:
        client = Client(channel, settings)
        await client.version()
        yield client


def _check_socket(path: Path) -> None:
    if not path.is_socket():
        raise NotFound(f"containerd's socket {path} does not exist", hint="start containerd, or set rootfs.containerd.socket")
    if not os.access(path, os.R_OK | os.W_OK):
        raise Unauthorized(f"containerd's socket {path} may not be used by uid {os.geteuid()}", hint="run as root")
