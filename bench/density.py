"""Density: what 20 machines of one image take of the host's memory, by reflink and by overlay.

A machine takes the part of the guest's memory that the guest has touched and, with the others, what of their drives' files
lies in the host's page cache: both depend on the clone. What the VMM takes for itself is told apart; under TCG most of it is
translated code, which KVM does not have. The `castoff run` that each hangs on is not counted: an agent would hold many.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bench.cold import build
from bench.measure import Failed, started, tree
from bench.results import Row
from bench.stage import Published, Stage
from castoff.disk.clone import CloneKind

__all__ = ["rows"]

_PROGRAM = "import json, asyncio, http.client, yaml, requests, time; print('ready', flush=True); time.sleep(600)"
_MEMORY = 256 << 20
_AT_ONCE = 2
_BOOT_SECONDS = 60
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def rows(stage: Stage) -> Iterable[Row]:
    """MB a machine, both ways, and what overlay saves."""
    image = stage.publish("medium")
    build(stage, image)
    count = 4 if stage.quick else 20
    total: dict[str, float] = {}
    for kind in (CloneKind.REFLINK, CloneKind.OVERLAY):
        os.sync()
        for path in _files(stage):
            _drop(path)
        with _machines(stage, image, kind, count) as processes:
            memory = [_memory(pid) for process in processes for pid in tree(process.pid) if _is_vmm(pid)]
            cache = sum(_cached(path) for path in _files(stage)) / 1e6
        if len(memory) != count:
            raise Failed(f"{len(memory)} VMMs of {count} machines were found")
        guests, monitors = sum(guest for guest, _ in memory) / 1e6, sum(own for _, own in memory) / 1e6
        total[kind.value] = guests + cache
        told = {"guests_mb": guests, "page_cache_mb": cache, "monitors_mb": monitors, "machines": count}
        name = f"{count} machines of the medium image, {kind.value}: guest memory + page cache, each"
        yield Row("density", name, total[kind.value] / count, "MB", None, told)
    yield Row("density", f"{count} machines: reflink / overlay", total["reflink"] / total["overlay"], "x")


@contextlib.contextmanager
def _machines(stage: Stage, image: Published, kind: CloneKind, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """``count`` machines whose command has said that it is ready, for the block."""
    options = ["--vmm", "qemu", "--clone", kind.value, "--memory", str(_MEMORY), "--cpus", "1"]
    command = stage.castoff("--quiet", "run", *options, image.pinned, "python3", "-c", _PROGRAM)
    processes: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:
        for _ in range(0, count, _AT_ONCE):
            pair = [stack.enter_context(started(command)) for _ in range(_AT_ONCE)]
            processes += pair
            for process in pair:
                _wait_ready(process)
        yield processes
        for process in processes:  # all of them before the stack waits for each
            process.terminate()


def _wait_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stderr is not None
    ready, _, _ = select.select([process.stdout], [], [], _BOOT_SECONDS)
    line = process.stdout.readline() if ready else ""
    if line != "ready\n":
        process.terminate()
        raise Failed(f"a machine was not ready after {_BOOT_SECONDS} s: {line}{process.communicate()[1][-1500:]}")


def _is_vmm(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")


def _memory(pid: int) -> tuple[int, int]:
    """The VMM's proportional share (PSS) of the guest's memory and of everything else, in bytes.

    The guest's memory is the mapping that has exactly its size.
    """
    guest = own = 0
    size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "Size":
            size = int(rest.split()[0]) << 10
        elif name == "Pss":
            share = int(rest.split()[0]) << 10
            if size == _MEMORY:
                guest += share
            else:
                own += share
    return guest, own


def _files(stage: Stage) -> Iterator[Path]:
    """Every file that a drive may be, or may share its page cache with."""
    for pattern in ("machines/*/*", "rootfs/*/*", "layers/*/segment", "uppers/*"):
        yield from (path for path in stage.store.glob(pattern) if path.is_file() and not path.is_symlink())


def _drop(path: Path) -> None:
    """Lets go of what building the image left in the page cache: machines come long after."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _cached(path: Path) -> int:
    """Bytes of ``path`` in the host's page cache (mincore(2))."""
    size = path.stat().st_size
    if size == 0:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
        pages = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
        address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
        if _libc.mincore(address, size, pages.ctypes.data) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        return int(np.count_nonzero(pages & 1)) * mmap.PAGESIZE
