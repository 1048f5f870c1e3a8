"""Where a bench happens: a registry that holds the images, a containerd, and a state directory of castoff's, on a real disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import daemons

from bench.images.__main__ import make
from bench.images.layout import unpacked
from bench.measure import used_bytes
from castoff.config import Config, load

__all__ = ["PREFIX", "SIZE", "Published", "Stage", "stage"]

_REGISTRY = Path(".cache/bench/registry")
"""Kept between runs: pushing 10 GB again would take minutes. Its daemon and port are each run's own."""


_KERNELS = Path(".cache/kernels")
_SETTINGS = '[vmm.qemu]\naccelerator = "tcg"\n'
"""All but defaults, and instead of the host's own files: machines are emulated, so that hosts with and without KVM compare."""
PREFIX = "castoff-bench-"
"""Of scratch directories; the rest of the name is the bench's pid."""
SIZE = 8 << 30
"""Bytes of a root filesystem, castoff's and mke2fs': castoff's default."""


@dataclass(frozen=True, slots=True)
class Published:
    """An image in the registry."""

    name: str
    reference: str
    """``127.0.0.1:PORT/NAME:latest``."""
    pinned: str
    """``127.0.0.1:PORT/NAME@sha256:...``."""
    compressed: int
    """Bytes of its layers as the registry has them."""
    unpacked: int
    """Bytes of its unpacked layers on a disk of 4 KiB blocks, directories included."""

    @property
    def size(self) -> int:
        """Bytes of its root filesystem: the default, or twice what is in it where that is too small."""
        return max(SIZE, self.unpacked * 2 >> 30 << 30)


@dataclass(frozen=True, slots=True)
class Stage:
    """What every group of measurements is handed."""

    directory: Path
    """Scratch, on the filesystem that containerd and the tree tools work on."""
    state: Path
    """castoff's state directory."""
    registry: daemons.Registry
    containerd: daemons.Containerd
    quick: bool

    def publish(self, name: str) -> Published:
        """The image ``name``, made and pushed now if need be."""
        layout = make(name)
        entry = json.loads((layout / "index.json").read_text())["manifests"][0]
        manifest = json.loads((layout / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")).read_bytes())
        repository = f"{self.registry.host}/{name}"
        known = self.registry.directory / "docker/registry/v2/repositories" / name / "_manifests/revisions/sha256"
        if not (known / entry["digest"].removeprefix("sha256:")).exists():
            target = f"docker://{repository}:latest"
            subprocess.run(["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest", target], check=True)
        compressed = sum(layer["size"] for layer in manifest["layers"])
        return Published(name, f"{repository}:latest", f"{repository}@{entry['digest']}", compressed, unpacked(layout))

    def castoff(self, *words: str | Path) -> list[str]:
        """The command line of the castoff beside this Python, with this stage's state and settings."""
        command = Path(sys.executable).with_name("castoff")
        return [str(command), "--config", str(self._settings), "--state", str(self.state), *map(str, words)]

    def config(self) -> Config:
        """The same settings for this process."""
        return load(self._settings, state=self.state)

    @property
    def _settings(self) -> Path:
        return self.directory / "castoff.toml"

    def prepare(self) -> None:
        """Makes castoff's settings and state: its store and a kernel, as after the first run on a host."""
        self._settings.write_text(_SETTINGS)
        subprocess.run(self.castoff("--quiet", "store", "usage"), check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cp", "-r", f"{_KERNELS}/.", str(self.store / "kernels")], check=True)

    @property
    def store(self) -> Path:
        """Where castoff's store is mounted."""
        return self.state / "store"

    def forget(self, *areas: str) -> None:
        """Empties areas of castoff's store (all that is known of images, by default), so that the next round is cold."""
        for area in areas or ("rootfs", "layers", "images/sha256"):
            for entry in (self.store / area).iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self._settle()

    def _settle(self) -> None:
        """Waits until XFS has given back what was deleted, which it does in the background (fs/xfs/xfs_icache.c, inodegc)."""
        os.sync()
        seen = [-1, *(used_bytes(self.store) for _ in range(2))]
        while len(set(seen[-3:])) > 1:
            time.sleep(0.05)
            seen.append(used_bytes(self.store))

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """An empty directory for the block."""
        path = self.directory / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path)


def _sweep(beside: Path) -> None:
    """Clears away what a bench that was killed has left; its name ends with the pid."""
    for path in beside.glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX)
        if pid.isdigit() and not Path("/proc", pid).exists():
            _unmount(path)
            shutil.rmtree(path)


def _unmount(directory: Path) -> None:
    subprocess.run(["packaging/unmount", str(directory)], check=True)


@contextlib.contextmanager
def stage(directory: Path, *, quick: bool) -> Iterator[Stage]:
    """Sets the stage in ``directory``, which must not exist, and clears it away."""
    _sweep(directory.parent)
    directory.mkdir(parents=True)
    try:
        with daemons.registry(_REGISTRY) as registry, daemons.containerd(directory / "containerd") as containerd:
            found = Stage(directory, directory / "state", registry, containerd, quick)
            found.prepare()
            yield found
    finally:
        _unmount(directory)
        shutil.rmtree(directory)
