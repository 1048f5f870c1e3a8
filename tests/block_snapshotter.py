"""A snapshotter of block devices for containerd, as a proxy plugin: each snapshot is an ext4 image, a copy of its parent's.

What devmapper answers, without a thin pool: one mount of type ext4, whose source is a loop device (``device``) or the image
itself with the option ``loop`` (``file``, as blockfile does).

    python tests/block_snapshotter.py SOCKET DIRECTORY device|file MIB

Its state is in its memory; the images are in DIRECTORY. Service: containerd's api/services/snapshots/v1/snapshots.proto.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import grpc

from castoff.rootfs.containerd import messages as m
from castoff.rootfs.containerd.wire import decode, encode

VIEW, ACTIVE, COMMITTED = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Listed:
    """ListSnapshotsResponse"""

    info: Annotated[tuple[m.SnapshotInfo, ...], 1] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """UpdateSnapshotRequest"""

    snapshotter: Annotated[str, 1] = ""
    info: Annotated[m.SnapshotInfo | None, 2] = None


@dataclass(frozen=True, slots=True)
class UsageAnswer:
    size: Annotated[int, 1] = 0
    inodes: Annotated[int, 2] = 0


@dataclass
class Snapshot:
    image: Path
    parent: str
    kind: int
    labels: Mapping[str, str] = field(default_factory=dict)
    device: str = ""


class Failure(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class Snapshotter:
    """The service. Every method takes a request and gives an answer, or raises a Failure."""

    def __init__(self, directory: Path, mode: str, mib: int) -> None:
        self._directory = directory
        self._mode = mode
        self._mib = mib
        self._snapshots: dict[str, Snapshot] = {}
        self._count = 0
        self._lock = threading.RLock()

    def prepare(self, request: m.SnapshotRequest) -> m.Mounts:
        return self._make(request, ACTIVE)

    def view(self, request: m.SnapshotRequest) -> m.Mounts:
        return self._make(request, VIEW)

    def _make(self, request: m.SnapshotRequest, kind: int) -> m.Mounts:
        with self._lock:
            if request.key in self._snapshots:
                raise Failure(grpc.StatusCode.ALREADY_EXISTS, f"snapshot {request.key}: already exists")
            self._count += 1
            image = self._directory / f"{self._count}.img"
            if request.parent:
                subprocess.run(["cp", "--sparse=always", str(self._get(request.parent).image), str(image)], check=True)
            else:
                subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image), f"{self._mib}M"], check=True)
            made = Snapshot(image, request.parent, kind, request.labels)
            if self._mode == "device":
                attach = ["losetup", "--find", "--show", str(image)]
                made.device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
            self._snapshots[request.key] = made
            return self.mounts(m.SnapshotKey(key=request.key))

    def mounts(self, request: m.SnapshotKey) -> m.Mounts:
        found = self._get(request.key)
        options = ("ro",) if found.kind == VIEW else ("rw",)
        if found.device:
            return m.Mounts((m.Mount("ext4", found.device, options=options),))
        return m.Mounts((m.Mount("ext4", str(found.image), options=(*options, "loop")),))

    def commit(self, request: m.CommitSnapshotRequest) -> m.Empty:
        with self._lock:
            if request.name in self._snapshots:
                raise Failure(grpc.StatusCode.ALREADY_EXISTS, f"snapshot {request.name}: already exists")
            found = self._get(request.key)
            self._detach(found)
            del self._snapshots[request.key]
            self._snapshots[request.name] = Snapshot(found.image, found.parent, COMMITTED, request.labels)
            return m.Empty()

    def remove(self, request: m.SnapshotKey) -> m.Empty:
        with self._lock:
            found = self._get(request.key)
            if any(other.parent == request.key for other in self._snapshots.values()):
                raise Failure(grpc.StatusCode.FAILED_PRECONDITION, f"snapshot {request.key} has children")
            self._detach(found)
            found.image.unlink()
            del self._snapshots[request.key]
            return m.Empty()

    def stat(self, request: m.SnapshotKey) -> m.StatSnapshotResponse:
        return m.StatSnapshotResponse(self._info(request.key, self._get(request.key)))

    def update(self, request: Update) -> m.StatSnapshotResponse:
        assert request.info is not None
        found = self._get(request.info.name)
        found.labels = request.info.labels
        return m.StatSnapshotResponse(self._info(request.info.name, found))

    def list(self, request: m.Empty) -> Iterator[Listed]:
        with self._lock:
            yield Listed(tuple(self._info(name, found) for name, found in self._snapshots.items()))

    def usage(self, request: m.SnapshotKey) -> UsageAnswer:
        return UsageAnswer(self._get(request.key).image.stat().st_blocks * 512, 1)

    def cleanup(self, request: m.Empty) -> m.Empty:
        return m.Empty()

    def close(self) -> None:
        for found in self._snapshots.values():
            self._detach(found)

    def _get(self, name: str) -> Snapshot:
        if name not in self._snapshots:
            raise Failure(grpc.StatusCode.NOT_FOUND, f"snapshot {name}: not found")
        return self._snapshots[name]

    def _info(self, name: str, found: Snapshot) -> m.SnapshotInfo:
        return m.SnapshotInfo(name, found.parent, found.kind, found.labels)

    def _detach(self, found: Snapshot) -> None:
        if found.device:
            subprocess.run(["losetup", "--detach", found.device], check=True)
            found.device = ""


def answered(method: Callable[[Any], Any], request: Any, context: grpc.ServicerContext) -> Any:
    try:
        return method(request)
    except Failure as failure:
        context.abort(failure.code, str(failure))
    except subprocess.CalledProcessError as error:
        context.abort(grpc.StatusCode.UNKNOWN, str(error))


def handlers(service: Snapshotter) -> grpc.GenericRpcHandler:
    unary: dict[str, tuple[Callable[[Any], Any], type[Any]]] = {
        "Prepare": (service.prepare, m.SnapshotRequest),
        "View": (service.view, m.SnapshotRequest),
        "Mounts": (service.mounts, m.SnapshotKey),
        "Commit": (service.commit, m.CommitSnapshotRequest),
        "Remove": (service.remove, m.SnapshotKey),
        "Stat": (service.stat, m.SnapshotKey),
        "Update": (service.update, Update),
        "Usage": (service.usage, m.SnapshotKey),
        "Cleanup": (service.cleanup, m.Empty),
    }
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            partial(answered, method), request_deserializer=partial(decode, request), response_serializer=encode
        )
        for name, (method, request) in unary.items()
    }
    methods["List"] = grpc.unary_stream_rpc_method_handler(
        partial(answered, service.list), request_deserializer=partial(decode, m.Empty), response_serializer=encode
    )
    return grpc.method_handlers_generic_handler("containerd.services.snapshots.v1.Snapshots", methods)


def main() -> None:
    socket, directory, mode, mib = sys.argv[1:]
    service = Snapshotter(Path(directory), mode, int(mib))
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([handlers(service)])
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: done.set())
    done.wait()
    server.stop(2).wait()
    service.close()


if __name__ == "__main__":
    main()
