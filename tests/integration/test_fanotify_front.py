"""The fanotify front over the kernel's own events, with the compiled answerer and without it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from castoff.hydrate.eventlog import SLOT
from castoff.hydrate.fanotify_front import FanotifyFront
from castoff.hydrate.map import LazyMap
from castoff.hydrate.record import CLONE, LOG
from castoff.hydrate.recorder import ProfileRecorder
from castoff.image.digest import Digest
from castoff.layers.toc import CHUNK
from lazy_rootfs import Core, LazyFiles, make_lazy
from oci_builder import LayerTar

DIGEST = Digest.of(b"")


class Served:
    """A rootfs behind a front; close it."""

    def __init__(self, directory: Path, *, compiled: bool) -> None:
        tar = LayerTar().file("data", os.urandom(3 * CHUNK + 5)).file("more", os.urandom(2 * CHUNK))
        self.rootfs: LazyFiles = make_lazy(directory, tar.bytes())
        self.said: list[str] = []
        self.front = FanotifyFront.marked(self.rootfs.directory, self.rootfs.size, self.said.append, compiled=compiled)
        self.core = Core(self.rootfs, self.front.descriptors.fill)
        self.path = self.rootfs.directory / CLONE

    def close(self) -> None:
        self.front.stop()
        self.front.close()
        self.core.close()


@pytest.fixture(params=[True, False], ids=["compiled", "interpreted"])
def served(request: pytest.FixtureRequest, scratch_xfs: Path) -> Iterator[Served]:
    found = Served(scratch_xfs, compiled=request.param)
    yield found
    found.close()


def reading(path: Path, offset: int, size: int) -> subprocess.Popen[bytes]:
    """Another process reads there: ours would wait for itself."""
    code = "import os, sys; at = os.open(sys.argv[1], os.O_RDONLY); os.write(1, os.pread(at, int(sys.argv[3]), int(sys.argv[2])))"
    return subprocess.Popen(
        [sys.executable, "-c", code, path, str(offset), str(size)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def read(path: Path, offset: int, size: int) -> bytes:
    return reading(path, offset, size).communicate(timeout=30)[0]


def test_reads_wait_for_what_is_absent_and_pass_where_it_is_here(served: Served) -> None:
    """Many at once; each sees its bytes, and the log is empty in the end."""
    content, first = served.rootfs.bytes(), served.rootfs.map.chunk_of[0]
    served.front.start(served.core)
    served.core.hold()
    waiting = [reading(served.path, (first + at) * CHUNK + 100, 5000) for at in range(3)]
    served.core.until_waiting(3)
    assert read(served.path, 0, 4096) == content[:4096], "the metadata is here, and nobody stands in its way"
    served.core.release()
    for at, process in enumerate(waiting):
        start = (first + at) * CHUNK + 100
        assert process.communicate(timeout=30)[0] == content[start : start + 5000]
    assert read(served.path, 0, len(content)) == content
    log = (served.rootfs.directory / LOG).read_bytes()
    assert not any(any(log[at : at + 4]) for at in range(0, len(log), SLOT))
    assert served.said == []


def test_a_read_that_cannot_be_served_fails(served: Served) -> None:
    """With EIO, and the next one is asked for anew."""
    first = served.rootfs.map.chunk_of[0] * CHUNK
    served.front.start(served.core)
    served.core.failing = True
    process = reading(served.path, first, 4096)
    assert os.strerror(errno.EIO).encode() in process.communicate(timeout=30)[1]
    served.core.failing = False
    assert read(served.path, first, 4096) == served.rootfs.bytes()[first : first + 4096]


def test_a_boot_is_recorded(served: Served, tmp_path: Path) -> None:
    """What was read, in order, whether it had to wait or not; nothing after the recorder has gone."""
    map: LazyMap = served.rootfs.map
    recorder = ProfileRecorder(tmp_path, DIGEST, map, [DIGEST])
    served.core.recorder = recorder
    served.front.start(served.core)
    for row in (2, 0, 2, 1):
        read(served.path, map.chunk_of[row] * CHUNK, 10)
    when = time.monotonic()
    assert [chunk.number for chunk in recorder.trace(when)] == [map.layer_chunk_of[row] for row in (2, 0, 1)]


def test_complete_lets_go_of_nobody(served: Served) -> None:
    """Reads during it and after it end, and it is a plain file then."""
    served.front.start(served.core)
    served.core.fill_everything()
    readers = [reading(served.path, int(at) * CHUNK, 4096) for at in np.arange(4)]
    served.front.complete()
    content = served.rootfs.bytes()
    for at, process in enumerate(readers):
        assert process.communicate(timeout=30)[0] == content[at * CHUNK : at * CHUNK + 4096]
    assert read(served.path, 0, len(content)) == content
