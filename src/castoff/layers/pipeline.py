"""Threads joined by queues: how one layer keeps several cores busy.

A stage is a function that runs in its own thread and speaks with its neighbours through queues of large buffers. hashlib,
igzip, zstd, BLAKE3 and pwrite all let go of the GIL, so the stages overlap; at a megabyte a buffer the GIL changes hands
a few thousand times a gigabyte, which costs nothing. The first stage that fails stops all others.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from castoff.errors import Unavailable

__all__ = ["Buffer", "Channel", "Pipeline", "Pool", "Stopped"]

T = TypeVar("T")


class Stopped(Exception):
    """Another stage failed, or the conversion was cancelled: this stage ends without an error of its own."""


class Channel(Generic[T]):
    """A queue between two stages; bounded by the pool that its buffers come from.

    ``get`` returns None when the sender has ``close``\\ d it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self.put: Callable[[T], None] = self._queue.put

    def get(self) -> T | None:
        """The next item, waiting for it.

        Raises:
            Stopped: The pipeline was stopped.
        """
        item = self._queue.get()
        if item is None:
            self._queue.put(None)  # for whoever asks again
        if self._pipeline.stopped:
            raise Stopped
        return item

    def close(self) -> None:
        """No more items will come; also what wakes a waiting reader when the pipeline is stopped."""
        self._queue.put(None)


class Pipeline:
    """Runs stages in threads until all have ended or one has failed.

    Args:
        done: Called once, in the thread that ended last.
    """

    def __init__(self, name: str, done: Callable[[], object]) -> None:
        self.stopped = False
        self.error: BaseException | None = None
        self._name = name
        self._done = done
        self._lock = threading.Lock()
        self._channels: list[Channel[object]] = []
        self._threads: list[threading.Thread] = []
        self._running = 0

    def channel(self) -> Channel[T]:
        """A new channel that is woken when the pipeline stops."""
        channel: Channel[T] = Channel(self)
        self._channels.append(channel)  # type: ignore[arg-type]
        return channel

    def start(self, *stages: Callable[[], None]) -> None:
        """Starts one thread a stage. Called once."""
        self._running = len(stages)
        for stage in stages:
            name = f"{self._name}-{stage.__qualname__}"
            self._threads.append(threading.Thread(target=self._run, args=(stage,), name=name, daemon=True))
        for number, thread in enumerate(self._threads):
            try:
                thread.start()
            except RuntimeError as error:
                self._threads = self._threads[:number]
                self.stop(Unavailable(f"no thread for a conversion: {error}", hint="raise the limits of processes and memory"))
                self._ended(len(stages) - number)
                return

    def _run(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except Stopped:
            pass
        except BaseException as error:
            self.stop(error)
        self._ended(1)

    def _ended(self, count: int) -> None:
        with self._lock:
            self._running -= count
            last = not self._running
        if last:
            self._done()

    def stop(self, error: BaseException) -> None:
        """Ends all stages; the first error is kept."""
        with self._lock:
            if self.stopped:
                return
            self.error = error
            self.stopped = True
        for channel in self._channels:
            channel.close()

    def join(self) -> None:
        """Waits for all threads to have ended, and lets go of the channels, whose buffers a cycle with this would keep."""
        for thread in self._threads:
            thread.join()
        self._channels.clear()


class Buffer:
    """A page-aligned piece of memory (O_DIRECT wants that) that goes round between stages; ``filled`` bytes of it count."""

    __slots__ = ("_memory", "filled", "offset", "view")

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size)
        self.view = memoryview(self._memory)
        self.filled = 0
        self.offset = 0


class Pool:
    """At most ``count`` buffers, made when first wanted: what bounds the memory of a pipeline."""

    def __init__(self, pipeline: Pipeline, count: int, size: int) -> None:
        self._free: Channel[Buffer] = pipeline.channel()
        self._left = count
        self._size = size

    def take(self) -> Buffer:
        """A buffer, waiting for one to be given back if need be; only one thread may take.

        Raises:
            Stopped: The pipeline was stopped.
            Unavailable: There is no memory for it.
        """
        if self._left:
            self._left -= 1
            try:
                return Buffer(self._size)
            except OSError as error:
                raise Unavailable(f"no memory for a buffer of {self._size} bytes: {error.strerror}") from error
        buffer = self._free.get()
        if buffer is None:
            raise Stopped
        return buffer

    def give(self, buffer: Buffer) -> None:
        """Gives a buffer back."""
        self._free.put(buffer)
