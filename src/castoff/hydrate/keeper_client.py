"""How the keeper is reached, and started: by a hydrator, which is kept alive by it and keeps it alive, and by who wants one.

A hydrator's first steps:

    seat = take_seat(state)          # one hydrator for a state directory; its predecessor is dead to the last thread
    logs = open_logs(...)            # before anything else is opened: castoff.hydrate.eventlog
    keeper = connect(state)
    keeper.register()
    held = keeper.take()
    guarding = asyncio.create_task(keeper.guard())

Everything here but :meth:`Keeper.guard` blocks, for well under a millisecond once the keeper runs (it does nothing else),
and for the start of a small Python where it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from castoff.errors import Conflict, Unavailable
from castoff.hydrate import descriptors

__all__ = ["Keeper", "connect", "take_seat"]

_TIMEOUT: Final = 10.0
"""Seconds that a keeper may take to start, or to answer."""
_PACKAGES: Final = Path(__file__).parents[2]
"""Where the package castoff is."""


def take_seat(state: Path, *, timeout: float = 2.0) -> int:
    """The right to be the hydrator of ``state``: a descriptor, to be held until the process ends.

    It is a flock, which a process gives back only when its last thread is gone: so whoever has it knows that no
    predecessor reads events or answers them any more.

    Raises:
        Conflict: Another hydrator runs.
    """
    directory = state.absolute() / "hydrate"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    seat = os.open(directory / "hydrator.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(seat, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(seat)
                raise Conflict(f"a hydrator of {state} runs") from None
        else:
            return seat
        time.sleep(0.002)


def connect(state: Path, *, command: Sequence[str] = ()) -> Keeper:
    """The keeper of ``state``, started where none runs.

    Args:
        state: castoff's state directory.
        command: How a keeper that is started here starts its hydrator; empty: ``python -m castoff.hydrate --state STATE``.

    Raises:
        Unavailable: It does not start, or does not answer.
    """
    keeper = Keeper(state.absolute(), command)
    try:
        keeper.renew()
    except BaseException:
        keeper.close()
        raise
    return keeper


class Keeper:
    """A connection to the keeper; see :func:`connect`. Safe to use from several threads."""

    def __init__(self, state: Path, command: Sequence[str]) -> None:
        self._state = state
        self._command = command
        self._path = state / "hydrate" / "keeper.sock"
        self._kept: dict[str, tuple[int, ...]] = {}
        self._lock = threading.RLock()
        self._connection = _Connection(None)
        self._presence = _Connection(None)
        self._registered = False

    def keep(self, machine_id: str, fds: Sequence[int]) -> None:
        """Has it hold a machine's descriptors, instead of those that it may hold for it.

        The caller's own stay open until :meth:`drop`: a new keeper is given them.

        Raises:
            Unavailable: There is no keeper, and none can be started.
        """
        with self._lock:
            self._kept[machine_id] = tuple(fds)
            self._ask(f"keep {machine_id}", fds)

    def drop(self, machine_id: str) -> None:
        """Has it close a machine's descriptors; none is no error. The caller's own are the caller's to close.

        Raises:
            Unavailable: As with :meth:`keep`.
        """
        with self._lock:
            self._kept.pop(machine_id, None)
            self._ask(f"drop {machine_id}")

    def take(self) -> Mapping[str, tuple[int, ...]]:
        """What it holds, by machine, as descriptors of our own (close-on-exec); it goes on holding them, as if by :meth:`keep`.

        Raises:
            Unavailable: As with :meth:`keep`.
        """
        with self._lock:
            names = self._ask("list")[0].split("\n")[1:]
            for name in names:
                answer, fds = self._ask(f"take {name}")
                if name in self._kept:
                    descriptors.close_all(fds)
                elif answer == "ok":
                    self._kept[name] = fds
            return {name: self._kept[name] for name in names if name in self._kept}

    def register(self) -> None:
        """Says that this process is the hydrator: it is started again when it ends, while anything is kept.

        Raises:
            Unavailable: As with :meth:`keep`.
        """
        with self._lock:
            self._registered = True
            self._introduce()

    def start_hydrator(self) -> None:
        """Has it start the hydrator, where none runs.

        Raises:
            Unavailable: As with :meth:`keep`.
        """
        with self._lock:
            self._ask("start")

    async def guard(self) -> None:
        """Starts another keeper whenever this one ends, and has it hold what it held; runs until it is cancelled.

        Raises:
            Unavailable: None can be started, tried for a minute.
        """
        while True:
            assert self._presence.socket is not None, "register() first"
            # A descriptor of its own: the other may be replaced, and closed, by a thread that finds the keeper gone first.
            with self._presence.socket.dup() as presence:
                presence.setblocking(False)
                with contextlib.suppress(OSError):
                    # Nothing is ever said here: whatever comes is the end.
                    await asyncio.get_running_loop().sock_recv(presence, 1)
            await asyncio.to_thread(self._revive)

    def renew(self) -> None:
        """Connects again, to a keeper that is started where none runs, and gives it all that the last one was to keep.

        Raises:
            Unavailable: As with :meth:`keep`.
        """
        with self._lock:
            deadline = time.monotonic() + _TIMEOUT
            while True:
                try:
                    self._connection.replace(descriptors.connect(self._path))
                    if self._registered:
                        self._introduce()
                    for name, fds in self._kept.items():
                        self._exchange(f"keep {name}", fds)
                except (OSError, EOFError) as error:
                    # None runs, or it was just ending.
                    if time.monotonic() > deadline:
                        raise Unavailable(f"the keeper of {self._state} does not answer: {error}", hint=self._hint) from error
                    self._start()
                else:
                    return

    def close(self) -> None:
        """Hangs up; what it keeps, it keeps. Idempotent."""
        with self._lock:
            self._connection.close()
            self._presence.close()

    def _revive(self) -> None:
        for delay in (0.1, 1, 5, 10, 20, 20):
            try:
                self.renew()
            except Unavailable:
                time.sleep(delay)
            else:
                return
        self.renew()

    def _ask(self, line: str, fds: Sequence[int] = ()) -> tuple[str, tuple[int, ...]]:
        try:
            return self._exchange(line, fds)
        except (OSError, EOFError):
            self.renew()  # it is gone; whatever was kept, the new one has it again, and is asked again
        try:
            return self._exchange(line, fds)
        except (OSError, EOFError) as error:
            raise Unavailable(f"the keeper of {self._state} hangs up: {error}", hint=self._hint) from error

    def _exchange(self, line: str, fds: Sequence[int] = ()) -> tuple[str, tuple[int, ...]]:
        return self._connection.exchange(line, fds)

    def _introduce(self) -> None:
        pidfd = os.pidfd_open(os.getpid())
        try:
            self._presence.replace(descriptors.connect(self._path))
            self._presence.exchange("hydrator", [pidfd])
        finally:
            os.close(pidfd)

    def _start(self) -> None:
        command = [sys.executable, "-m", "castoff.hydrate.keeper", str(self._state), *self._command]
        # Found without the directory that we were started in, which may be how we were found.
        path = os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get("PYTHONPATH")]))
        try:
            # It ends when its socket is there, and goes on as a child of nobody's.
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                timeout=2 * _TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"the keeper of {self._state} does not start: {error}", hint=self._hint) from error
        if done.returncode != 0:
            why = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise Unavailable(f"the keeper of {self._state} does not start: {why}", hint=self._hint)

    @property
    def _hint(self) -> str:
        return f"see {self._state}/hydrate/log"


class _Connection:
    """A socket that may be replaced by another."""

    def __init__(self, found: socket.socket | None) -> None:
        self.socket = found

    def replace(self, found: socket.socket) -> None:
        self.close()
        found.settimeout(_TIMEOUT)
        self.socket = found

    def exchange(self, line: str, fds: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        if self.socket is None:
            raise EOFError("not connected")
        descriptors.send(self.socket, os.fsencode(line), fds)
        data, theirs = descriptors.receive(self.socket)
        answer = os.fsdecode(data)
        if answer.startswith("error"):
            descriptors.close_all(theirs)
            raise OSError(f"{line.split()[0]}: {answer}")
        return answer, theirs

    def close(self) -> None:
        found, self.socket = self.socket, None
        if found is not None:
            found.close()
