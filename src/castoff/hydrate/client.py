"""Asking the hydrator: to serve a directory's rootfs, how far it is, that a machine is ready or gone.

The hydrator listens on ``STATE/hydrate/socket`` (castoff.hydrate.channel) and is started where it does not run. Whoever asks
must be root or of the same uid. On the way of a create: imports nothing heavy.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from castoff import errors, timeline
from castoff.errors import CastoffError, Code, Internal, Unavailable
from castoff.hydrate import descriptors, keeper_client
from castoff.hydrate.channel import Channel
from castoff.hydrate.record import HotPackRecord
from castoff.image.digest import Digest
from castoff.image.settings import ImageSettings

__all__ = ["Attached", "Progress", "attach", "detach", "expect", "progress", "ready", "socket_path", "wake"]

_START = 15.0
"""Seconds in which a hydrator must answer after it was started, on a busy host too."""
_ANSWER = 60.0
_TRIES = 3
_PAUSE = 0.05
"""Seconds after which a hydrator that hung up is asked again: it may be just ending."""
_CLASSES: dict[str, type[CastoffError]] = {
    Code.INVALID: errors.Invalid,
    Code.NOT_FOUND: errors.NotFound,
    Code.CONFLICT: errors.Conflict,
    Code.UNAUTHORIZED: errors.Unauthorized,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.UNSUPPORTED: errors.Unsupported,
}


@dataclass(slots=True)
class Attached:
    """A rootfs that is served from now on. The VMM inherits ``descriptors``; close them here once it was started."""

    descriptors: tuple[int, ...]
    """The front's and the fill descriptor, close-on-exec here."""

    def close(self) -> None:
        """Closes this process' copies. Idempotent."""
        descriptors, self.descriptors = self.descriptors, ()
        for descriptor in descriptors:
            os.close(descriptor)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a rootfs is."""

    rows: int
    """Chunks that this rootfs wants."""
    present: int
    """Of them, here."""
    fetched: int
    """Bytes of packs that came in for it since the hydrator took it over."""
    misses: int
    """Requests of the guest that had to wait, since then."""
    waiting: int
    """Requests that wait now."""
    failing: str = ""
    """Why chunks do not come in at the moment; empty: they do."""
    complete: bool = False


def socket_path(state: Path) -> Path:
    """Where the hydrator of a state directory listens."""
    return state / "hydrate" / "socket"


async def wake(state: Path) -> None:
    """Starts the hydrator where it does not run, and does not wait for it. Called early in a create: then attach need not wait.

    Raises:
        Unavailable: It cannot be started.
    """
    try:
        await _ask(state, {"do": "hello"}, start=False)
    except _NotRunning:
        await asyncio.to_thread(_start, state)


async def attach(state: Path, directory: Path) -> Attached:
    """Has a directory's rootfs served (castoff.hydrate.record says what must be in it).

    Args:
        state: castoff's state directory.
        directory: Absolute, with ``lazy.json``, ``lazy.map``, ``lazy.state`` and ``root.ext4``; its name is the machine's id.
            Nobody else may have root.ext4 open: a descriptor from before the mark raises no events.

    Raises:
        NotFound, Invalid: The directory lacks something, or it is broken.
        Unsupported: This kernel cannot serve it in the way that the record says.
        Unavailable: The hydrator does not answer.
    """
    with timeline.step("hydrate.attach"):
        _, found = await _ask(state, {"do": "attach", "directory": str(directory)}, start=True)
        return Attached(found)


async def expect(state: Path, image: Digest, hot_pack: HotPackRecord, registry: ImageSettings) -> None:
    """A rootfs of the image is going to be attached: its hot pack may begin to come in.

    Args:
        state: castoff's state directory.
        image: Of the image's manifest.
        hot_pack: Where it is.
        registry: How to reach it.

    Raises:
        Unavailable: The hydrator does not answer.
    """
    message = {
        "do": "expect",
        "image": str(image),
        "hot_pack": msgspec.to_builtins(hot_pack),
        "registry": msgspec.to_builtins(registry),
    }
    await _ask(state, message, start=True)


async def ready(state: Path, machine: str) -> None:
    """The machine does what it was started for: its boot profile ends here, and the background may begin.

    Does nothing where the hydrator does not serve it (any more).

    Raises:
        Unavailable: The hydrator does not answer.
    """
    await _tell(state, {"do": "ready", "machine": machine, "when": time.monotonic()})


async def detach(state: Path, machine: str) -> None:
    """The machine is gone: its rootfs is served no longer. Whoever still reads from it gets EIO first.

    Does nothing where the hydrator does not serve it.

    Raises:
        Unavailable: The hydrator does not answer.
    """
    await _tell(state, {"do": "detach", "machine": machine})


async def progress(state: Path, machine: str) -> Progress | None:
    """How far a served rootfs is; None where it is not served (any more).

    Raises:
        Unavailable: The hydrator does not answer.
    """
    answer = await _tell(state, {"do": "progress", "machine": machine})
    return None if answer is None or answer.get("served") is False else msgspec.convert(answer["progress"], Progress)


async def _tell(state: Path, message: dict[str, Any]) -> dict[str, Any] | None:
    """Asks a hydrator that runs; None where none does."""
    try:
        return (await _ask(state, message, start=False))[0]
    except _NotRunning:
        return None


class _NotRunning(Exception):
    """There is no hydrator."""


async def _ask(state: Path, message: dict[str, Any], *, start: bool) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The answer; a hydrator that ends before it has answered (idle, or killed) has a successor, which is asked again."""
    for left in reversed(range(_TRIES)):
        async with _connected(state, start=start) as channel:
            try:
                async with asyncio.timeout(_ANSWER):
                    await channel.send(message)
                    found = await channel.receive()
            except TimeoutError as error:
                raise Unavailable(f"the hydrator of {state} does not answer", hint=f"see {state}/hydrate/log") from error
            except OSError as error:
                if not left:
                    why = error.strerror
                    raise Unavailable(f"the hydrator of {state} hung up: {why}", hint=f"see {state}/hydrate/log") from error
                found = None
        if found is not None:
            answer, theirs = found
            if "error" in answer:
                raise _failure(answer["error"])
            return answer, theirs
        await asyncio.sleep(_PAUSE)
    raise Unavailable(f"the hydrator of {state} ended", hint=f"try again; see {state}/hydrate/log")


@asynccontextmanager
async def _connected(state: Path, *, start: bool) -> AsyncIterator[Channel]:
    connection = _connect(state)
    if connection is None:
        if not start:
            raise _NotRunning
        connection = await _started(state)
    channel = Channel(connection)
    try:
        yield channel
    finally:
        channel.close()


async def _started(state: Path) -> socket.socket:
    await asyncio.to_thread(_start, state)
    deadline = time.monotonic() + _START
    while (connection := _connect(state)) is None:
        if time.monotonic() > deadline:
            raise Unavailable(f"the hydrator of {state} does not start", hint=f"see {state}/hydrate/log")
        await asyncio.sleep(0.005)
    return connection


def _start(state: Path) -> None:
    """By way of the keeper, which starts it again whenever it dies while it has something to serve; blocks."""
    keeper = keeper_client.connect(state)
    try:
        keeper.start_hydrator()
    finally:
        keeper.close()


def _connect(state: Path) -> socket.socket | None:
    try:
        return descriptors.connect(socket_path(state))
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise Unavailable(f"the hydrator of {state} cannot be asked: {error.strerror}", hint="does it belong to you?") from error


def _failure(error: Any) -> CastoffError:
    if not isinstance(error, dict):
        return Internal("the hydrator answered with an error that has no form")
    kind = _CLASSES.get(str(error.get("code")), Internal)
    return kind(str(error.get("what")), hint=str(error.get("hint", "")))
