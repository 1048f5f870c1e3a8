"""Density: what 20 machines of one image take of the host's memory, by reflink and by overlay.

A machine takes the proportional share (PSS) of its VMM's memory, and with the others what of their drives' files lies in
the host's page cache. The `castoff run` that each hangs on is not counted: an agent would hold many.
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
from bench.measure import Failed, tree
from bench.results import Row
from bench.stage import Published, Stage
from castoff.disk.clone import CloneKind

__all__ = ["rows"]

_PROGRAM = "import json, asyncio, http.client, yaml, requests, time; print('ready', flush=True); time.sleep(600)"
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
        with _machines(stage, image, kind, count) as processes:
            vmm = sum(_pss(pid) for process in processes for pid in tree(process.pid) if _is_vmm(pid)) / 1e6
            cache = sum(_cached(path) for path in _files(stage)) / 1e6
        total[kind.value] = vmm + cache
        told = {"vmm_mb": vmm, "page_cache_mb": cache, "machines": count}
        yield Row("density", f"{count} machines of the medium image, {kind.value}: host memory", vmm + cache, "MB", None, told)
    yield Row("density", f"{count} machines: reflink / overlay", total["reflink"] / total["overlay"], "x")


@contextlib.contextmanager
def _machines(stage: Stage, image: Published, kind: CloneKind, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """``count`` machines whose command has said that it is ready, for the block."""
    options = ["--vmm", "qemu", "--clone", kind.value, "--memory", "128M", "--cpus", "1"]
    command = stage.castoff("--quiet", "run", *options, image.pinned, "python3", "-c", _PROGRAM)
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(0, count, _AT_ONCE):
            started = [_start(command) for _ in range(_AT_ONCE)]
            processes += started
            for process in started:
                _wait_ready(process)
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=60)


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stderr is not None
    ready, _, _ = select.select([process.stdout], [], [], _BOOT_SECONDS)
    line = process.stdout.readline() if ready else ""
    if line != "ready\n":
        process.kill()
        raise Failed(f"a machine was not ready after {_BOOT_SECONDS} s: {line}{process.stderr.read()[-1500:]}")


def _is_vmm(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def _files(stage: Stage) -> Iterator[Path]:
    """Every file that a drive may be, or may share its page cache with."""
    for pattern in ("machines/*/*", "rootfs/*/*", "layers/*/segment", "uppers/*"):
        yield from (path for path in stage.store.glob(pattern) if path.is_file() and not path.is_symlink())


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
