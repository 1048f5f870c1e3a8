"""A small hydrator over the real keeper, event log and fanotify, and a reader in a monitor's place, for the crash tests.

Chunks are computed, not fetched, so that what is tested is the handing-over alone. The hydrator dies of itself too, with a
set probability at each of its steps, so that every instant gets its share of deaths.

    STATE/machines/ID/root.ext4   the clone: sparse
    STATE/machines/ID/lazy.state  one byte a chunk: 0 absent, 1 present
    STATE/machines/ID/lazy.log    castoff.hydrate.eventlog
    STATE/deaths                  a line for each death that it chose: the step
    STATE/recovered               a byte for each event of a predecessor that was answered
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import random
import select
import signal
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from castoff.hydrate.descriptors import open_fill
from castoff.hydrate.eventlog import ALLOW, Event, EventLog, open_logs
from castoff.hydrate.keeper_client import connect, take_seat
from castoff.hydrate.takeback import end_writers, take_back

CHUNK = 64 * 1024
CHUNKS = 192
DEATHS = 5
"""Times that the hydrator of a state directory dies of itself, at most."""
STEPS = ("read", "filled", "present", "answered", "freed")
"""After which it may."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_INIT_FLAGS = 0x08 | 0x01 | 0x02 | 0x10  # FAN_CLASS_PRE_CONTENT, FAN_CLOEXEC, FAN_NONBLOCK, FAN_UNLIMITED_QUEUE
_PRE_ACCESS = 0x100000


def chunk(number: int) -> bytes:
    """What chunk ``number`` holds; never zeros."""
    return hashlib.shake_128(str(number).encode()).digest(CHUNK)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def mark(clone: Path) -> int:
    """A group with the clone marked in it."""
    group = _checked(_LIBC.fanotify_init(_INIT_FLAGS, os.O_RDWR | os.O_CLOEXEC))
    _checked(_LIBC.fanotify_mark(group, 1, ctypes.c_uint64(_PRE_ACCESS), -100, os.fsencode(clone)))
    return group


@dataclass(frozen=True)
class Machine:
    """A clone that is served, and its descriptors."""

    directory: Path
    group: int
    fill: int

    @property
    def clone(self) -> Path:
        return self.directory / "root.ext4"


def prepare(directory: Path) -> Machine:
    """A clone with nothing in it, marked."""
    directory.mkdir(parents=True)
    with (directory / "root.ext4").open("wb") as file:
        file.truncate(CHUNKS * CHUNK)
    (directory / "lazy.state").write_bytes(bytes(CHUNKS))
    EventLog.create(directory / "lazy.log").close()
    fill = open_fill(directory / "root.ext4")
    return Machine(directory, mark(directory / "root.ext4"), fill)


class Hydrator:
    """Serves one machine."""

    def __init__(self, state: Path, machine: Machine, log: EventLog, deadliness: float) -> None:
        self._state = state
        self._machine = machine
        self._log = log
        self._deadliness = deadliness
        self._dice = random.Random()
        with (machine.directory / "lazy.state").open("r+b") as file:
            self._present = mmap.mmap(file.fileno(), CHUNKS)
        self._locks = [threading.Lock() for _ in range(CHUNKS)]
        self._pool = ThreadPoolExecutor(8)

    def run(self) -> None:
        for event in self._log.unanswered():
            with (self._state / "recovered").open("ab") as file:
                file.write(b"x")
            self._pool.submit(self._handle, event)
        waiting = select.poll()
        waiting.register(self._machine.group, select.POLLIN)
        while True:
            waiting.poll()
            for event in self._log.read_from(self._machine.group):
                self._pool.submit(self._handle, event)

    def _handle(self, event: Event) -> None:
        try:
            self._at("read")
            for number in range(event.offset // CHUNK, -(-(event.offset + event.size) // CHUNK)):
                with self._locks[number]:
                    self._fill(number)
            with contextlib.suppress(FileNotFoundError):
                os.write(self._machine.group, struct.pack("=iI", event.fd, ALLOW))
            self._at("answered")
            self._log.answered(event)
            self._at("freed")
            if not event.old:
                os.close(event.fd)
        except BaseException as error:
            print(f"hydrator: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)

    def _fill(self, number: int) -> None:
        if self._present[number]:
            return
        time.sleep(self._dice.random() * 0.004)
        data = chunk(number)
        os.pwrite(self._machine.fill, data[: CHUNK // 2], number * CHUNK)
        self._at("filled")
        os.pwrite(self._machine.fill, data[CHUNK // 2 :], number * CHUNK + CHUNK // 2)
        self._present[number] = 1
        self._at("present")

    def _at(self, step: str) -> None:
        if self._dice.random() < self._deadliness:
            with (self._state / "deaths").open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                if len(file.readlines()) >= DEATHS:
                    return
                file.write(f"{step}\n")
            os.kill(os.getpid(), signal.SIGKILL)


def hydrate(state: Path, deadliness: float) -> None:
    """What ``python -m castoff.hydrate`` does, for machines whose chunks are computed."""
    take_seat(state)
    directories = sorted((state / "machines").iterdir())
    logs = open_logs(directory / "lazy.log" for directory in directories)
    keeper = connect(state, command=[sys.executable, *sys.argv])
    keeper.register()
    held = keeper.take()
    threads = []
    for directory in directories:
        found = held.get(directory.name) or take_back(directory / "root.ext4")
        if found is None:
            print(f"ended {end_writers(directory / 'root.ext4')}", file=sys.stderr, flush=True)
            (directory / "root.ext4").unlink()
            continue
        if directory.name not in held:
            print("took back 1", file=sys.stderr, flush=True)
            keeper.keep(directory.name, found)
        machine = Machine(directory, *found)
        threads.append(threading.Thread(target=Hydrator(state, machine, logs[directory / "lazy.log"], deadliness).run))
    for thread in threads:
        thread.start()
    print(f"serves {len(threads)}", file=sys.stderr, flush=True)
    if threads:
        asyncio.run(keeper.guard())


def read(clone: Path, seed: int, rounds: int) -> None:
    """A guest: reads and writes all of the clone, in random order, on several threads; exits 3 at the first wrong byte."""
    descriptor = os.open(clone, os.O_RDWR | os.O_CLOEXEC)
    dice = random.Random(seed)
    numbers = list(range(CHUNKS)) * rounds
    dice.shuffle(numbers)
    expected = [bytearray(chunk(number)) for number in range(CHUNKS)]
    locks = [threading.Lock() for _ in range(CHUNKS)]

    def visit(number: int) -> None:
        with locks[number]:
            start = random.randrange(CHUNK)
            end = random.randrange(start, CHUNK) + 1
            if random.random() < 0.3:
                written = os.urandom(end - start)
                os.pwrite(descriptor, written, number * CHUNK + start)
                expected[number][start:end] = written
            elif os.pread(descriptor, end - start, number * CHUNK + start) != expected[number][start:end]:
                print(f"chunk {number} is wrong between {start} and {end}", flush=True)
                os._exit(3)
            print(number, flush=True)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(visit, numbers))
    for number in range(CHUNKS):
        if os.pread(descriptor, CHUNK, number * CHUNK) != expected[number]:
            print(f"chunk {number} is wrong at the end", flush=True)
            os._exit(3)
    print("right", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "hydrate":
        hydrate(Path(sys.argv[2]), float(sys.argv[3]))
    else:
        read(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
