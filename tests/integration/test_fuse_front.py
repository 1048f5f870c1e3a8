"""The FUSE front: a real mount, a real layer, readers that the kernel knows as any other."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from castoff.errors import NotFound, Unavailable
from castoff.hydrate import fuse_mount
from castoff.hydrate.front import Descriptors
from castoff.hydrate.fuse import BASE, MOUNT, FuseFront
from castoff.hydrate.record import CLONE
from castoff.layers.toc import CHUNK
from lazy_rootfs import Core, LazyFiles, make_lazy
from oci_builder import LayerTar

MIB = 1 << 20
TESTS = Path(__file__).parent.parent


def some_layer() -> bytes:
    """Large files, small files, one that is mostly zeros."""
    dice = random.Random(5)
    layer = LayerTar().directory("data").file("data/large", dice.randbytes(5 * MIB + 777))
    for number in range(64):
        layer.file(f"data/{number}", dice.randbytes(dice.randrange(1, 60_000)))
    return layer.file("data/sparse", bytes(3 * MIB) + dice.randbytes(5000)).file("last", b"the end\n").bytes()


@pytest.fixture
def rootfs(scratch_xfs: Path) -> Iterator[LazyFiles]:
    yield make_lazy(scratch_xfs, some_layer(), size=64 * MIB)
    assert fuse_mount.mounted(scratch_xfs) == []


class Served:
    """A front with its core."""

    def __init__(self, rootfs: LazyFiles) -> None:
        self.reports: list[str] = []
        self.front = FuseFront.mounted(rootfs.directory, self.reports.append)
        self.core = Core(rootfs, self.front.descriptors.fill)
        self.front.start(self.core)
        self.path = rootfs.directory / BASE
        self.expected = rootfs.bytes()


@pytest.fixture
def served(rootfs: LazyFiles) -> Iterator[Served]:
    found = Served(rootfs)
    yield found
    found.core.release()
    found.front.abandon()
    found.front.close()
    found.core.close()
    assert found.reports == []


def read_direct(path: Path, offset: int, count: int) -> bytes:
    """Past the page cache of the mounted file."""
    buffer = mmap.mmap(-1, count)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        return buffer[: os.preadv(descriptor, [buffer], offset)]
    finally:
        os.close(descriptor)


def read_buffered(path: Path, offset: int, count: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, count, offset)
    finally:
        os.close(descriptor)


@contextmanager
def readers(served: Served, count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for readers; at its end nobody waits any more."""
    with ThreadPoolExecutor(count) as pool:
        try:
            yield pool
        finally:
            served.core.release()


def first_chunk(rootfs: LazyFiles, row: int = 0) -> int:
    """Offset of a row's chunk."""
    return rootfs.map.chunk_of[row] * CHUNK


@pytest.mark.parametrize("read", [read_buffered, read_direct])
def test_random_reads_have_the_right_bytes(served: Served, read: Callable[[Path, int, int], bytes]) -> None:
    """From nothing to everything, by eight readers at a time, of all sizes, and past the end."""
    dice, wanted = random.Random(7), served.core.missing
    ranges = [
        (dice.randrange(0, len(served.expected), 4096), 4096 * dice.choice([1, 1, 1, 2, 32, 64, 100, 300])) for _ in range(400)
    ]
    with ThreadPoolExecutor(8) as pool:
        for (offset, count), data in zip(ranges, pool.map(lambda one: read(served.path, *one), ranges), strict=True):
            assert data == served.expected[offset : offset + count], f"{count} bytes at {offset}"
    assert served.core.missing < wanted / 4


def test_the_whole_file_is_the_rootfs(served: Served) -> None:
    """Sequentially, with the kernel's read-ahead."""
    assert served.path.read_bytes() == served.expected


def test_it_looks_like_a_file_that_may_be_read(served: Served, rootfs: LazyFiles) -> None:
    """Of the rootfs' size and time, and read-only; what tools ask of files is answered or refused at once."""
    status = served.path.stat()
    assert (status.st_size, status.st_mode, status.st_nlink) == (64 * MIB, 0o100400, 1)
    assert status.st_mtime == int((rootfs.directory / CLONE).stat().st_mtime)
    with served.path.open("rb") as file:
        assert file.seek(0, os.SEEK_END) == 64 * MIB
        assert os.fstatvfs(file.fileno()).f_blocks * 4096 == 64 * MIB
        assert os.pread(file.fileno(), 10, 64 * MIB) == b""
        os.fsync(file.fileno())
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        with pytest.raises(OSError, match=r"Errno (25|95)"):
            os.getxattr(file.fileno(), "user.none")
    for refused in (lambda: served.path.open("r+b"), lambda: served.path.chmod(0o600), lambda: os.truncate(served.path, 0)):
        with pytest.raises(OSError) as caught:
            refused()
        assert caught.value.errno == errno.EROFS


def test_the_kernel_mounts_it(served: Served, rootfs: LazyFiles, tmp_path: Path) -> None:
    """As the lower half of an overlay: an ext4 in a loop device over the file, every file of the layer in it."""
    point = tmp_path / "base"
    point.mkdir()
    subprocess.run(["mount", "-t", "ext4", "-o", "ro,noload,loop", str(served.path), str(point)], check=True)
    try:
        with rootfs.whole.open("rb"):
            assert (point / "last").read_bytes() == b"the end\n"
            dice = random.Random(5)
            assert (point / "data/large").read_bytes() == dice.randbytes(5 * MIB + 777)
            for number in range(64):
                assert (point / f"data/{number}").read_bytes() == dice.randbytes(dice.randrange(1, 60_000))
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_what_is_there_is_read_while_others_wait(served: Served, rootfs: LazyFiles) -> None:
    """A hundred readers wait for a source that does not answer; the rest is read as ever, and all are right in the end."""
    read_direct(served.path, first_chunk(rootfs), 4096)
    served.core.hold()
    offset = first_chunk(rootfs, 3)
    with readers(served, 100) as pool:
        waiting = [pool.submit(read_direct, served.path, offset + number * 512, 512) for number in range(100)]
        served.core.until_waiting(100)
        for page in range(64):
            at = first_chunk(rootfs) + page * 4096
            assert read_direct(served.path, at, 4096) == served.expected[at : at + 4096]
        assert not any(future.done() for future in waiting)
        served.core.release()
        for number, future in enumerate(waiting):
            assert future.result(10) == served.expected[offset + number * 512 :][:512]


def test_read_ahead_that_waits_holds_up_nobody(served: Served, rootfs: LazyFiles) -> None:
    """More buffered readers of absent chunks than the kernel's default of background requests, and one of a present one."""
    at = first_chunk(rootfs)
    read_direct(served.path, at, 4096)
    served.core.hold()
    absent = [first_chunk(rootfs, row) for row in range(1, 20)]
    with readers(served, 20) as pool:
        waiting = [pool.submit(read_buffered, served.path, offset, 131072) for offset in absent]
        served.core.until_waiting(19)
        assert pool.submit(read_buffered, served.path, at, 131072).result(5) == served.expected[at : at + 131072]
        served.core.release()
        for offset, future in zip(absent, waiting, strict=True):
            assert future.result(10) == served.expected[offset : offset + 131072]


@pytest.mark.parametrize("read", [read_buffered, read_direct])
def test_what_cannot_be_had_is_an_error_and_a_later_read_tries_again(
    served: Served, rootfs: LazyFiles, read: Callable[[Path, int, int], bytes]
) -> None:
    """Never zeros."""
    offset = first_chunk(rootfs, 1)
    served.core.failing = True
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            read(served.path, offset, 8192)
        assert caught.value.errno == errno.EIO
    served.core.failing = False
    assert read(served.path, offset, 8192) == served.expected[offset : offset + 8192]


READ = "import os, sys; os.pread(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), 0, 0); print('open', flush=True)\n"
READ += "import mmap; os.preadv(3, [mmap.mmap(-1, 4096)], int(sys.argv[2]))"


def test_a_reader_that_waits_can_be_killed(served: Served, rootfs: LazyFiles) -> None:
    """At once, though nothing comes in: the kernel asks, and is told."""
    served.core.hold()
    child = subprocess.Popen([sys.executable, "-c", READ, str(served.path), str(first_chunk(rootfs, 2))], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    served.core.until_waiting(1)
    child.kill()
    assert child.wait(5) == -signal.SIGKILL
    child.stdout.close()
    served.core.release()
    assert read_direct(served.path, first_chunk(rootfs, 2), 4096) == served.expected[first_chunk(rootfs, 2) :][:4096]


def test_requests_are_recorded(served: Served, rootfs: LazyFiles) -> None:
    """For boot profiles: each with whether it had to wait."""
    found: list[tuple[int, int, bool]] = []

    class Recorder:
        def access(self, start: int, end: int, when: float, missed: bool) -> None:
            assert abs(time.monotonic() - when) < 5
            found.append((start, end, missed))

    served.core.recorder = Recorder()
    at = first_chunk(rootfs)
    for _ in range(2):
        read_direct(served.path, at, 8192)
    served.front.stop()
    assert found == [(at, at + 8192, True), (at, at + 8192, False)]


def complete(served: Served, rootfs: LazyFiles) -> threading.Thread:
    """Completes a rootfs that somebody has open: its file is unmounted, and the thread lasts until that one is gone."""
    served.core.fill_everything()
    completing = threading.Thread(target=served.front.complete)
    completing.start()
    while fuse_mount.mounted(rootfs.directory):
        time.sleep(0.01)
    return completing


def test_a_complete_rootfs_is_a_plain_file_to_the_next(rootfs: LazyFiles) -> None:
    """Who has the mounted file open keeps it, and the front lasts as long; the path leads to root.ext4."""
    served = Served(rootfs)
    reader = os.open(served.path, os.O_RDONLY | os.O_DIRECT)
    completing = complete(served, rootfs)
    assert served.path.resolve() == (rootfs.directory / CLONE).resolve()
    assert served.path.read_bytes() == served.expected
    buffer = mmap.mmap(-1, 64 * 1024)
    assert os.preadv(reader, [buffer], 8 * MIB) == len(buffer)
    assert buffer[:] == served.expected[8 * MIB :][: len(buffer)]
    assert completing.is_alive()
    os.close(reader)
    completing.join(5)
    assert not completing.is_alive()
    served.front.close()
    served.core.close()
    assert not (rootfs.directory / MOUNT).exists()
    assert served.reports == []


def test_waiting_for_the_last_machine_can_be_ended(rootfs: LazyFiles) -> None:
    """A hydrator that goes while a machine still reads from a complete rootfs: its successor goes on."""
    served = Served(rootfs)
    reader = os.open(served.path, os.O_RDONLY | os.O_DIRECT)
    completing = complete(served, rootfs)
    served.front.stop()
    completing.join(5)
    assert not completing.is_alive()
    successor = FuseFront(
        rootfs.directory,
        Descriptors(*map(os.dup, (served.front.descriptors.front, served.front.descriptors.fill))),
        served.reports.append,
    )
    served.front.close()
    successor.start(served.core)
    buffer = mmap.mmap(-1, 4096)
    assert os.preadv(reader, [buffer], 8 * MIB) == 4096
    assert buffer[:] == served.expected[8 * MIB :][:4096]
    os.close(reader)
    successor.complete()
    successor.close()
    served.core.close()
    assert served.reports == []


class Process:
    """Servers in processes of their own, one after another, over one mount; at its end the mount is gone and nobody waits."""

    def __init__(self, rootfs: LazyFiles) -> None:
        self.rootfs = rootfs
        self.front: FuseFront | None = FuseFront.mounted(rootfs.directory, print)
        self.path = rootfs.directory / BASE
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, delay: float) -> None:
        assert self.front is not None
        fds = (self.front.descriptors.front, self.front.descriptors.fill)
        arguments = [self.rootfs.directory, self.rootfs.whole, self.rootfs.size, *fds, delay]
        command = [sys.executable, str(TESTS / "fuse_process.py"), *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(TESTS)}
        self.child = subprocess.Popen(command, pass_fds=fds, stdout=subprocess.PIPE, env=environment)
        assert self.child.stdout is not None
        assert self.child.stdout.readline() == b"serving\n"

    def kill(self) -> None:
        assert self.child is not None and self.child.stdout is not None
        self.child.kill()
        self.child.wait()
        self.child.stdout.close()
        self.child = None

    def __enter__(self) -> Process:
        return self

    def drop(self) -> None:
        """Closes the descriptors that are held here."""
        front, self.front = self.front, None
        if front is not None:
            front.close()

    def __exit__(self, *error: object) -> None:
        if self.child is not None:
            self.kill()
        fuse_mount.unmount(self.rootfs.directory / MOUNT)
        self.drop()


def test_a_successor_answers_what_the_dead_one_had_taken(rootfs: LazyFiles) -> None:
    """The server is killed while readers wait, and more come while there is none; they only wait."""
    expected = rootfs.bytes()
    offsets = [first_chunk(rootfs, row % 12) + 4096 * row for row in range(24)]
    with ThreadPoolExecutor(30) as pool, Process(rootfs) as process:
        process.start(delay=60)
        waiting = [pool.submit(read_direct, process.path, offset, 4096) for offset in offsets]
        waiting.append(pool.submit(read_buffered, process.path, 0, MIB))
        time.sleep(0.3)
        process.kill()
        present = pool.submit(read_direct, process.path, 0, 4096)
        time.sleep(0.1)
        assert not any(future.done() for future in waiting[:24])
        process.start(delay=0)
        for offset, future in zip(offsets, waiting[:24], strict=True):
            assert future.result(10) == expected[offset : offset + 4096]
        assert waiting[24].result(10) == expected[:MIB]
        assert present.result(10) == expected[:4096]


def test_kills_at_random_instants_are_not_seen(rootfs: LazyFiles) -> None:
    """Readers read on and on, buffered and direct, while servers die young: not one error, not one wrong byte."""
    expected = rootfs.bytes()
    dice = random.Random(11)
    stop = threading.Event()
    counts = [0] * 6

    def read_on(number: int) -> None:
        mine = random.Random(number)
        while not stop.is_set():
            offset = mine.randrange(0, len(expected), 4096)
            read = mine.choice([read_direct, read_buffered])
            assert read(process.path, offset, 16384) == expected[offset : offset + 16384]
            counts[number] += 1

    with ThreadPoolExecutor(len(counts)) as pool, Process(rootfs) as process:
        readers = [pool.submit(read_on, number) for number in range(len(counts))]
        for _ in range(10):
            process.start(delay=0.003)
            time.sleep(dice.random() * 0.3)
            process.kill()
        process.start(delay=0)
        time.sleep(0.2)
        stop.set()
        for reader in readers:
            reader.result(20)
    assert min(counts) > 10


def test_without_any_holder_reads_fail_and_the_mount_is_swept(rootfs: LazyFiles) -> None:
    """ENOTCONN, never a hole; then the sweep takes away the dead mount and leaves the live one."""
    directory = rootfs.directory
    with ThreadPoolExecutor(1) as pool, Process(rootfs) as process:
        process.start(delay=60)
        waiting = pool.submit(read_direct, process.path, first_chunk(rootfs), 4096)
        time.sleep(0.2)
        process.drop()
        process.kill()
        with pytest.raises(OSError) as caught:
            waiting.result(5)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
        with pytest.raises(OSError) as caught:
            process.path.open("rb")
        assert caught.value.errno == errno.ENOTCONN
        point = directory.resolve() / MOUNT
        assert fuse_mount.mounted(directory) == [point]
        assert fuse_mount.sweep(directory, {point}) == []
        assert fuse_mount.sweep(directory, set()) == [point]
        assert not point.exists()
        with pytest.raises(FileNotFoundError):
            process.path.open("rb")


def test_a_reader_that_holds_the_connection_itself_is_ended_by_the_sweep(rootfs: LazyFiles) -> None:
    """A monitor that inherited the device and waits when hydrator and keeper are gone: it gets an error."""
    offset = first_chunk(rootfs)
    with ThreadPoolExecutor(1) as pool, Process(rootfs) as process:
        assert process.front is not None
        fds = [os.dup(descriptor) for descriptor in (process.front.descriptors.front, process.front.descriptors.fill)]
        process.start(delay=60)
        waiting = pool.submit(read_direct, process.path, offset, 4096)
        time.sleep(0.2)
        process.drop()
        process.kill()
        time.sleep(0.2)
        assert not waiting.done()
        fuse_mount.sweep(rootfs.directory, set())
        with pytest.raises(OSError) as caught:
            waiting.result(5)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        for descriptor in fds:
            os.close(descriptor)


def test_a_machine_that_goes_ends_its_readers(rootfs: LazyFiles) -> None:
    """Abandoned, the file is nobody's: who waits, and who reads what was here, gets an error."""
    served = Served(rootfs)
    served.core.hold()
    with readers(served, 1) as pool:
        waiting = pool.submit(read_direct, served.path, first_chunk(rootfs), 4096)
        served.core.until_waiting(1)
        reader = os.open(served.path, os.O_RDONLY | os.O_DIRECT)
        served.front.abandon()
        with pytest.raises(OSError):
            waiting.result(5)
        with pytest.raises(OSError) as caught:
            os.preadv(reader, [mmap.mmap(-1, 4096)], 0)
        assert caught.value.errno == errno.ENOTCONN
        os.close(reader)
    served.core.close()  # first: the core, let go, fills what was asked for
    served.front.close()
    assert served.reports == []


def test_mount_points_may_have_any_name(scratch_xfs: Path) -> None:
    """Spaces, newlines, backslashes: /proc/self/mountinfo writes them as octal."""
    directory = scratch_xfs / "a b\n\\c\u00e9"
    directory.mkdir()
    device = fuse_mount.mount_file(directory / "point")
    assert fuse_mount.mounted(directory) == [directory / "point"]
    fuse_mount.unmount(directory / "point")
    fuse_mount.unmount(directory / "point")
    assert list(directory.iterdir()) == []
    os.close(device)


def test_what_cannot_be_mounted_is_told(scratch_xfs: Path) -> None:
    """No rootfs, or no directory; and the probe says that this host can."""
    with pytest.raises(NotFound, match=r"has no root\.ext4"):
        FuseFront.mounted(scratch_xfs, print)
    with pytest.raises(Unavailable, match="cannot be made a mount point: No such file"):
        fuse_mount.mount_file(scratch_xfs / "none" / "point")
    assert fuse_mount.missing(scratch_xfs) == ""
    assert list(scratch_xfs.iterdir()) == []
