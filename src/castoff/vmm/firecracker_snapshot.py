"""A guest's memory and devices in two files: how Firecracker writes them, and reads them.

Firecracker writes the whole memory, zeros as well, and maps it when it goes on, so the bytes are checked before it is given
them, and a jailed one may read that file and not write it. Source: Firecracker, docs/snapshotting/snapshot-support.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from castoff.errors import Conflict, Invalid, Unavailable
from castoff.store.durable import fsync_path
from castoff.store.space import no_space_as
from castoff.vmm.cpu import host_cpu
from castoff.vmm.firecracker_jail import Jail
from castoff.vmm.vmm import Snapshot

if TYPE_CHECKING:
    from castoff.vmm.firecracker_api import FirecrackerApi, FirecrackerSession

__all__ = ["go_on", "load_seconds", "read_guest", "shape", "write_guest"]

_MEMORY: Final = "guest"
_DEVICES: Final = "devices"
_DEVICES_LIMIT: Final = 64 << 20
_PIECE: Final = 1 << 20
_CONTROL: Final = 20.0
_SLOWEST: Final = 8 << 20
"""Bytes of memory a second: a disk that is slower counts as stuck."""
_OTHERS: Final = ("/logger", "/boot-source", "/actions")
"""What a guest that runs already does not know of."""


def shape(requests: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """What a machine's configuration has in common with that of the Firecracker that goes on from its guest."""
    told = [request for request in requests if request[0] not in _OTHERS]
    return hashlib.sha256(json.dumps([told, host_cpu()], sort_keys=True).encode()).hexdigest()[:16]


def load_seconds(size: int) -> float:
    """How long so many bytes may take."""
    return _CONTROL + size / _SLOWEST


async def write_guest(api: FirecrackerApi, jail: Jail, directory: Path, *, shape: str, memory: int) -> Snapshot:
    """Pauses the guest and writes it down, durably. Where that fails it goes on.

    Args:
        api: Its Firecracker.
        jail: Where that sees files.
        directory: Where to; an empty one.
        shape: What only the same machine has.
        memory: Bytes that the guest has.

    Raises:
        NoSpace, Unavailable: It cannot be written; Firecracker is gone.
    """
    try:
        async with asyncio.timeout(load_seconds(memory)):
            async with api.connected() as session:
                made_by = f"{await _version(session)} {shape}"
                try:
                    await session.patch("/vm", {"state": "Paused"})
                    await _create(session, jail, directory)
                    size, digest = await asyncio.to_thread(_settled, directory, memory)
                except BaseException:
                    await asyncio.shield(go_on(api, memory))
                    raise
    except TimeoutError as error:
        raise Unavailable("the machine's memory was not written in time", hint="is the disk that slow?") from error
    return Snapshot(made_by=made_by, size=size, digest=digest)


async def go_on(api: FirecrackerApi, memory: int) -> None:
    """Lets a guest that was paused run.

    Args:
        api: Its Firecracker, which answers only when it has written what it was told to write.
        memory: Bytes that the guest has.

    Raises:
        Unavailable: Firecracker does not answer.
    """
    try:
        async with asyncio.timeout(load_seconds(memory)), api.connected() as session:
            if (await session.get("/")).get("state") == "Paused":
                await session.patch("/vm", {"state": "Resumed"})
    except TimeoutError as error:
        raise Unavailable("firecracker gave no answer", hint="has the machine ended?") from error


async def read_guest(
    session: FirecrackerSession, jail: Jail, directory: Path, snapshot: Snapshot, *, shape: str, logger: dict[str, Any]
) -> None:
    """Lets a fresh Firecracker take a guest, which stays paused. Whoever calls sets a time limit.

    Args:
        session: With it.
        jail: Where it sees files.
        directory: What :func:`write_guest` filled.
        snapshot: What it told.
        shape: The machine's.
        logger: What is told to Firecracker before.

    Raises:
        Conflict: Another Firecracker, or another machine, wrote it.
        Invalid: It is not what was written.
        Unavailable: Firecracker cannot take it.
    """
    made_by = f"{await _version(session)} {shape}"
    if made_by != snapshot.made_by:
        raise Conflict(
            f"the machine was suspended by Firecracker {snapshot.made_by}, this is {made_by}", hint="it is started anew"
        )
    await asyncio.to_thread(_check, directory, snapshot)
    await session.put("/logger", logger)
    names = (_MEMORY, _DEVICES)
    memory, devices = [await asyncio.to_thread(jail.lend, f"snapshot.{name}", directory / name, write=False) for name in names]
    await session.put(
        "/snapshot/load",
        {
            "snapshot_path": devices,
            "mem_backend": {"backend_type": "File", "backend_path": memory},
            "resume_vm": False,  # only when the record says that it runs
        },
    )
    for name in names:
        jail.take_back(f"snapshot.{name}")


async def _version(session: FirecrackerSession) -> str:
    return str((await session.get("/")).get("vmm_version", ""))[:100]


async def _create(session: FirecrackerSession, jail: Jail, directory: Path) -> None:
    names = (_MEMORY, _DEVICES)
    try:
        for name in names:
            os.close(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise Unavailable(f"{directory} cannot be written: {error.strerror}") from error
    memory, devices = [await asyncio.to_thread(jail.lend, f"snapshot.{name}", directory / name, write=True) for name in names]
    try:
        body = {"snapshot_type": "Full", "snapshot_path": devices, "mem_file_path": memory}
        await session.put("/snapshot/create", body)
    finally:
        for name in names:
            jail.take_back(f"snapshot.{name}")


def _settled(directory: Path, memory: int) -> tuple[int, str]:
    """Makes what was written root's alone, and durable. Its size and digest."""
    try:
        with no_space_as(directory):
            for name, limit in ((_MEMORY, memory), (_DEVICES, _DEVICES_LIMIT)):
                path = directory / name
                os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
                if not 0 < path.stat().st_size <= limit:
                    raise Unavailable(f"firecracker wrote {path.stat().st_size} bytes to {path}, not 1 to {limit}")
                fsync_path(path)
            fsync_path(directory)
            return _sum(directory)
    except OSError as error:
        raise Unavailable(f"{directory} cannot be written: {error.strerror}") from error


def _sum(directory: Path) -> tuple[int, str]:
    from blake3 import blake3

    digest, size = blake3(), 0
    for name in (_MEMORY, _DEVICES):
        with (directory / name).open("rb", buffering=0) as file:
            while data := file.read(_PIECE):
                digest.update(data)
                size += len(data)
    return size, digest.hexdigest()


def _check(directory: Path, snapshot: Snapshot) -> None:
    try:
        found = _sum(directory)
    except OSError as error:
        raise Invalid(f"{directory} cannot be read: {error.strerror}", hint="the machine is started anew") from error
    if found != (snapshot.size, snapshot.digest):
        raise Invalid("the machine's memory is not what was written", hint="it is started anew; is the disk well?")
