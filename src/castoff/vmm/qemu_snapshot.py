"""A guest's memory and devices in a file: how QEMU writes them, and reads them (docs/formats.md, "Suspended machine").

QEMU's own migration, through a pipe that castoff empties or fills: QEMU opens no file, none of its own may grow as large, and
what it reads is checked on the way. Pages of zeros are not written. Sources: QEMU, docs/devel/migration, qapi/migration.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from castoff.errors import CastoffError, Conflict, Invalid, Unavailable, Unsupported
from castoff.store.durable import fsync_path
from castoff.store.space import no_space_as
from castoff.vmm import qmp as control
from castoff.vmm.qmp import Qmp, connect
from castoff.vmm.vmm import Snapshot

__all__ = ["go_on", "read_guest", "write_guest"]

_FILE: Final = "guest"
_NAME: Final = "castoff"
_PIECE: Final = 1 << 20
_LOOK: Final = 0.2
"""Seconds after which a thread that waits for the pipe looks whether anybody waits for it."""
_CONTROL: Final = 20.0
_SLOWEST: Final = 8 << 20
"""Bytes of memory a second: a disk that is slower counts as stuck."""
_STOPPED: Final = ("paused", "postmigrate")
_UNLIMITED: Final = 1 << 40
"""Bytes a second. QEMU's default is meant for networks: 32 MiB/s in its version 7."""


async def write_guest(socket: Path, directory: Path, shape: str) -> Snapshot:
    """Stops the guest and writes it down, durably. Where that fails it goes on.

    Args:
        socket: QEMU's control socket.
        directory: Where to.
        shape: What only the same machine has.

    Raises:
        Unsupported: QEMU cannot do that with this machine.
        NoSpace, Unavailable: It cannot be written; QEMU is gone.
    """
    try:
        async with asyncio.timeout(_CONTROL) as limit, connect(socket) as qmp:
            summary = await qmp.execute("query-memory-size-summary")
            limit.reschedule(asyncio.get_running_loop().time() + _CONTROL + summary["base-memory"] / _SLOWEST)
            made_by = f"{await control.version(qmp)} {shape}"
            await _stop(qmp)
            try:
                size, digest = await _write(qmp, directory / _FILE)
            except BaseException:
                await asyncio.shield(_resume(qmp))
                raise
    except TimeoutError as error:
        raise Unavailable("the machine's memory was not written in time", hint="is the disk that slow?") from error
    return Snapshot(made_by=made_by, size=size, digest=digest)


async def read_guest(socket: Path, directory: Path, snapshot: Snapshot, shape: str) -> None:
    """Lets a QEMU that waits for it (``-incoming defer -S``) take a guest; it is stopped then.

    Args:
        socket: QEMU's control socket.
        directory: What :func:`write_guest` filled.
        snapshot: What it told.
        shape: The machine's.

    Raises:
        Conflict: Another QEMU, or another machine, wrote it.
        Invalid: It is not what was written.
        Unavailable: QEMU cannot take it.
    """
    try:
        async with asyncio.timeout(_CONTROL + snapshot.size / _SLOWEST), connect(socket) as qmp:
            made_by = f"{await control.version(qmp)} {shape}"
            if made_by != snapshot.made_by:
                raise Conflict(
                    f"the machine was suspended by QEMU {snapshot.made_by}, this is {made_by}", hint="it is started anew"
                )
            await _events(qmp)
            async with _pipe(qmp, to_qemu=True) as descriptor, _beside(_fill, descriptor, directory / _FILE) as filled:
                await qmp.execute("migrate-incoming", uri=f"fd:{_NAME}")
                try:
                    await _completed(qmp)
                except CastoffError:
                    _check(await filled(), snapshot)  # where it is broken, that is why
                    raise
                _check(await filled(), snapshot)
    except TimeoutError as error:
        raise Unavailable("the machine's memory was not read in time", hint="is the disk that slow?") from error


async def go_on(socket: Path) -> None:
    """Lets a guest that was stopped run.

    Raises:
        Unavailable: QEMU does not answer.
    """
    try:
        async with asyncio.timeout(_CONTROL), connect(socket) as qmp:
            await _resume(qmp)
    except TimeoutError as error:
        raise Unavailable(f"qemu's control socket {socket} gave no answer", hint="has the machine ended?") from error


async def _stop(qmp: Qmp) -> None:
    if (await qmp.execute("query-status"))["status"] == "postmigrate":
        # An earlier attempt came that far, and nobody was there any more: QEMU writes a guest once only.
        await qmp.execute("cont")
    await qmp.execute("stop")
    await _events(qmp)


async def _events(qmp: Qmp) -> None:
    await qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])


async def _resume(qmp: Qmp) -> None:
    with contextlib.suppress(CastoffError):  # nothing is under way, mostly
        await qmp.execute("migrate_cancel")
    while True:
        status = (await qmp.execute("query-status"))["status"]
        if status in _STOPPED:
            await qmp.execute("cont")
        if status != "finish-migrate":
            return
        await asyncio.sleep(_LOOK / 10)  # what was cancelled ends just now


async def _write(qmp: Qmp, path: Path) -> tuple[int, str]:
    await qmp.execute("migrate-set-parameters", **{"max-bandwidth": _UNLIMITED})
    async with _pipe(qmp, to_qemu=False) as descriptor, _beside(_empty, descriptor, path) as emptied:
        try:
            await qmp.execute("migrate", uri=f"fd:{_NAME}")
        except Unavailable as error:  # a device of it cannot be written down
            raise Unsupported(f"this machine cannot be suspended: {error.what}", hint="stop it instead") from error
        try:
            await _completed(qmp)
        except CastoffError:
            await emptied()  # where the disk refused, that is why
            raise
        return await emptied()


async def _completed(qmp: Qmp) -> None:
    while (status := (await qmp.event("MIGRATION")).get("status")) != "completed":
        if status in ("failed", "cancelled"):
            why = (await qmp.execute("query-migrate")).get("error-desc", status)
            raise Unsupported(f"qemu cannot do that with this machine's memory: {why}", hint="stop it instead")


def _check(found: tuple[int, str], snapshot: Snapshot) -> None:
    if found != (snapshot.size, snapshot.digest):
        raise Invalid("the machine's memory is not what was written", hint="it is started anew; is the disk well?")


# --- the pipe, and the thread at its end -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _pipe(qmp: Qmp, *, to_qemu: bool) -> AsyncIterator[int]:
    """Our end of a pipe of which QEMU has the other."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    ours, its = (writer, reader) if to_qemu else (reader, writer)
    try:
        try:
            with contextlib.suppress(OSError):  # a smaller one does
                fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, _PIECE)
            await qmp.pass_descriptor(_NAME, its)
        finally:
            os.close(its)
        os.set_blocking(ours, False)
        yield ours
    finally:
        os.close(ours)


@contextlib.asynccontextmanager
async def _beside(
    work: Callable[[int, Path, threading.Event], tuple[int, str]], descriptor: int, path: Path
) -> AsyncIterator[Callable[[], asyncio.Future[tuple[int, str]]]]:
    """Runs ``work`` in a thread beside the block, and ends it with the block. Gives a function that waits for its result."""
    over = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, descriptor, path, over))
    try:
        yield lambda: asyncio.shield(task)
    finally:
        over.set()
        while not task.done():  # it has the descriptor, which is closed next: nothing may cut this wait short
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        task.exception()  # looked at, or asyncio complains


def _empty(descriptor: int, path: Path, over: threading.Event) -> tuple[int, str]:
    """Takes all that comes out of the pipe; it is on the disk at the end. Size and digest."""
    from blake3 import blake3

    digest, size = blake3(), 0
    try:
        with no_space_as(path), open(path, "xb", buffering=0, opener=_for_us) as target:
            while data := _take(descriptor, over):
                digest.update(data)
                size += len(data)
                rest = memoryview(data)
                while rest:
                    rest = rest[target.write(rest) :]
            os.fsync(target.fileno())
            fsync_path(path.parent)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error
    return size, digest.hexdigest()


def _fill(descriptor: int, path: Path, over: threading.Event) -> tuple[int, str]:
    """Puts a file into the pipe. Size and digest of all of it, also where QEMU is gone before its end."""
    from blake3 import blake3

    digest, size, taken = blake3(), 0, True
    try:
        with path.open("rb", buffering=0) as source:
            while (data := source.read(_PIECE)) and not over.is_set():
                digest.update(data)
                size += len(data)
                taken = taken and _put(descriptor, data, over)
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}", hint="the machine is started anew") from error
    return size, digest.hexdigest()


def _for_us(path: str, flags: int) -> int:
    """A guest's memory holds all its secrets."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _take(descriptor: int, over: threading.Event) -> bytes:
    """The next of what comes out of the pipe; nothing at its end."""
    while not over.is_set():
        if select.select((descriptor,), (), (), _LOOK)[0]:
            with contextlib.suppress(BlockingIOError):
                return os.read(descriptor, _PIECE)
    return b""


def _put(descriptor: int, data: bytes, over: threading.Event) -> bool:
    """Puts all of it into the pipe; whether somebody is there to take it."""
    rest = memoryview(data)
    while rest and not over.is_set():
        if select.select((), (descriptor,), (), _LOOK)[1]:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return False
    return not rest
