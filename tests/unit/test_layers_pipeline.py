"""Threads joined by queues: the first failure ends all, and nothing waits for ever."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from castoff.layers.pipeline import Buffer, Channel, Pipeline, Pool, Stopped


def run() -> tuple[Pipeline, threading.Event]:
    """A pipeline that sets an event when it has ended."""
    done = threading.Event()
    return Pipeline("test", done.set), done


def test_items_come_in_order_and_the_end_is_told_again() -> None:
    """A channel that was closed says so to everyone who asks, as often as they ask."""
    pipeline, done = run()
    channel: Channel[int] = pipeline.channel()
    seen: list[int | None] = []

    def send() -> None:
        for number in range(1000):
            channel.put(number)
        channel.close()

    def take() -> None:
        while (number := channel.get()) is not None:
            seen.append(number)
        seen.extend((channel.get(), channel.get()))

    pipeline.start(send, take)
    assert done.wait(5)
    pipeline.join()
    assert seen == [*range(1000), None, None]
    assert pipeline.error is None


def test_the_first_failure_stops_all() -> None:
    """Stages that wait for a buffer, for an item, or have just one more to send, all end; the first error is kept."""
    pipeline, done = run()
    channel: Channel[int] = pipeline.channel()
    pool = Pool(pipeline, 1, 4096)
    ended: list[str] = []

    def hungry() -> None:
        pool.take()
        try:
            pool.take()
        except Stopped:
            ended.append("hungry")
            raise

    def waiting() -> None:
        try:
            channel.get()
        except Stopped:
            ended.append("waiting")
            raise

    def failing() -> None:
        raise ValueError("first")

    pipeline.start(hungry, waiting, waiting, failing)
    assert done.wait(5)
    pipeline.join()
    pipeline.stop(ValueError("later"))
    assert sorted(ended) == ["hungry", "waiting", "waiting"]
    assert str(pipeline.error) == "first"
    with pytest.raises(Stopped):
        channel.get()


def test_buffers_go_round() -> None:
    """No more buffers are made than the pool has; each is page-aligned memory of its size."""
    pipeline, _ = run()
    pool = Pool(pipeline, 2, 8192)
    one, other = pool.take(), pool.take()
    pool.give(one)
    assert pool.take() is one
    assert isinstance(other, Buffer)
    assert len(other.view) == 8192


_NO_THREADS = """
import asyncio, resource, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import isal.isal_zlib
from layer_reader import convert_bytes
from oci_builder import LayerTar
from castoff.errors import Unavailable

tar = LayerTar().file("f", bytes(1000)).bytes()
held = threading.Event()
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
threading.stack_size(512 << 20)
while True:
    try:
        threading.Thread(target=held.wait, daemon=True).start()
    except RuntimeError:
        break
threading.stack_size(int(sys.argv[3]) << 20)
try:
    asyncio.run(convert_bytes(Path(sys.argv[2]), tar))
except Unavailable as error:
    print(error.what)
"""


@pytest.mark.parametrize("stack", [100, 510])
def test_a_host_without_threads_is_told_so(tmp_path: object, stack: int) -> None:
    """Whichever of the stages gets no thread, the others end and the error is one line."""
    tests = __file__.rsplit("/", 2)[0]
    command = [sys.executable, "-c", _NO_THREADS, tests, f"{tmp_path}/layer", str(stack)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("no thread for a conversion: ")
