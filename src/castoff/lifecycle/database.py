"""The agent's SQLite file: one thread writes, what is queued meanwhile is committed together.

A write is acknowledged when its transaction is on disk. Two hundred creates at once are a few transactions and not two hundred:
while one is being flushed, the next gathers. One that fails fails alone. Rows that are written by the same function are handed to
it together (:meth:`Database.add`): each statement gives the interpreter's lock away and has to wait for it again, for
milliseconds where the event loop is busy, so there must be few. The loop is woken once for a whole transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, TypeVar

from castoff.errors import CastoffError, Internal, Invalid, NoSpace, Unavailable
from castoff.lifecycle.schema import STEPS

__all__ = ["Database"]

T = TypeVar("T")
R = TypeVar("R")

_BATCH: Final = 512
"""Writes in one transaction at most."""


@dataclass(slots=True, eq=False)
class _Write:
    """One write, and its answer: ``work`` alone, or ``row`` of what ``save`` takes many of."""

    answer: asyncio.Future[Any]
    work: Callable[[sqlite3.Connection], Any] | None = None
    save: Callable[[sqlite3.Connection, Sequence[Any]], None] | None = None
    row: Any = None
    result: Any = None
    error: BaseException | None = None

    def do(self, connection: sqlite3.Connection) -> None:
        if self.work is not None:
            self.result = self.work(connection)
        elif self.save is not None:
            self.save(connection, (self.row,))


class Database:
    """The file. Made by :meth:`open`."""

    def __init__(self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self._path = path
        self._writer = writer
        self._reader = reader
        self._reading = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="database", daemon=True)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Database]:
        """Opens the file, for its owner only; makes it where it is missing, and brings an older one up to date.

        Raises:
            Invalid: It is no database, or a newer castoff's.
            Internal: It cannot be read or written.
        """
        database = cls(path, *await asyncio.to_thread(cls._open, path))
        database._thread.start()
        try:
            yield database
        finally:
            database._closed = True  # on the loop, as every write is queued on it: nothing comes after the end
            database._queue.put(None)
            await asyncio.to_thread(database._thread.join)
            database._writer.close()
            database._reader.close()

    @classmethod
    def _open(cls, path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        with _errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with contextlib.ExitStack() as undo:
                writer = undo.enter_context(contextlib.closing(_connect(path)))
                _bring_up(writer, path)
                reader = _connect(path)
                undo.pop_all()
            return writer, reader

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Does ``work`` in the writing thread; returns when what it wrote is on disk.

        A caller that is cancelled does not undo it.

        Raises:
            CastoffError: The disk refused, or what ``work`` raised.
            Unavailable: The database was closed.
        """
        answer: asyncio.Future[T] = self._loop.create_future()
        self._put(_Write(answer, work=work))
        return await answer

    async def add(self, save: Callable[[sqlite3.Connection, Sequence[R]], None], row: R) -> None:
        """As :meth:`write`, for a row that ``save`` writes together with others that wait beside it.

        Raises:
            CastoffError: As :meth:`write`.
        """
        answer: asyncio.Future[None] = self._loop.create_future()
        self._put(_Write(answer, save=save, row=row))
        await answer

    def _put(self, write: _Write) -> None:
        if self._closed:
            raise Unavailable(f"{self._path} is closed", hint="the agent ends: ask its successor")
        self._queue.put(write)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Does ``work``, which only reads, in a thread, on what is committed."""

        def locked() -> T:
            with self._reading, _errors(self._path):
                return work(self._reader)

        return await asyncio.to_thread(locked)

    def _write_all(self) -> None:
        ends = False
        while not ends:
            first = self._queue.get()
            if first is None:
                return
            batch = [first]
            with contextlib.suppress(queue.Empty):
                while len(batch) < _BATCH:
                    following = self._queue.get_nowait()
                    if following is None:
                        ends = True
                        break
                    batch.append(following)
            self._commit(batch)

    def _commit(self, batch: list[_Write]) -> None:
        try:
            with _errors(self._path):
                self._writer.execute("BEGIN IMMEDIATE")
                for save, writes in groupby(batch, key=lambda write: write.save):
                    self._many(list(writes), save)
                self._writer.execute("COMMIT")
        except CastoffError as error:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            for write in batch:
                write.error = write.error or error
        self._loop.call_soon_threadsafe(_answer, batch)

    def _many(self, writes: list[_Write], save: Callable[[sqlite3.Connection, Sequence[Any]], None] | None) -> None:
        """Together; one by one where that fails, or they are works of their own."""
        if save is not None and len(writes) > 1:
            with contextlib.suppress(Exception), self._savepoint():  # whose fault it is shows below
                save(self._writer, [write.row for write in writes])
                return
        for write in writes:
            try:
                with _errors(self._path), self._savepoint():
                    write.do(self._writer)
            except Exception as error:  # what the caller's own code raised is the caller's
                write.error = error

    @contextlib.contextmanager
    def _savepoint(self) -> Iterator[None]:
        self._writer.execute("SAVEPOINT one")
        try:
            yield
        except BaseException:
            self._writer.execute("ROLLBACK TO one")
            raise
        finally:
            self._writer.execute("RELEASE one")


def _answer(batch: Iterable[_Write]) -> None:
    """On the loop: whoever was cancelled meanwhile waits no longer."""
    for write in batch:
        if write.answer.done():
            continue
        if write.error is not None:
            write.answer.set_exception(write.error)
        else:
            write.answer.set_result(write.result)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_up(connection: sqlite3.Connection, path: Path) -> None:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(STEPS):
        raise Invalid(f"{path} was written by a newer castoff (format {version})", hint="install that one, or restore a backup")
    for number, step in enumerate(STEPS[version:], version + 1):
        # One script, one transaction: a crash leaves the file at a step, never between two.
        connection.executescript(f"BEGIN IMMEDIATE; {step} PRAGMA user_version = {number}; COMMIT;")


@contextlib.contextmanager
def _errors(path: Path) -> Any:
    """Translates what SQLite and the disk say."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise NoSpace(str(path), needed=1 << 20, available=0) from error
        raise Internal(f"{path}: {error}", hint="is its disk well, and is it yours to write?") from error
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise Invalid(f"{path} is no database", hint="move it away, or restore a backup") from error
        raise Internal(f"{path}: {error}", hint="restore a backup where the file is damaged") from error
    except OSError as error:
        raise Internal(f"{path}: {error.strerror}", hint="is it yours to write?") from error
