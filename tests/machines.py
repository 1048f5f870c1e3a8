"""Runs castoff as a person does: the command, a state directory of its own, an image with a busybox in it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oci_builder import BuiltImage, LayerTar, build_image, write_layout

ROOT = Path(__file__).resolve().parents[1]


def busybox_layer() -> bytes:
    """The tar of a layer with a static busybox, a link for each applet and a root user."""
    made = subprocess.run([sys.executable, "-m", "bench.images", "small"], cwd=ROOT, capture_output=True, text=True, check=True)
    layout = ROOT / made.stdout.split()[-1]
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(_blob(layout, index["manifests"][0]["digest"]))
    return gzip.decompress(_blob(layout, manifest["layers"][0]["digest"]))


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def busybox_image(**process: Any) -> BuiltImage:
    """An image of two layers: busybox, and users and files of its own on top."""
    own = (
        LayerTar()
        .directory("etc")
        .file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
        .file("etc/group", b"root:x:0:\napp:x:1000:\nextra:x:1001:app\n")
        .directory("home/app", uid=1000, gid=1000)
        .directory("srv")
        .file("srv/data", b"from the image\n")
    )
    settings: dict[str, Any] = {"cmd": ["sh"], "env": ["PATH=/bin", "FROM_IMAGE=yes"]} | process
    return build_image([busybox_layer(), own], **settings)


@dataclass(frozen=True, slots=True)
class Castoff:
    """The command over one state directory."""

    state: Path
    image: str
    """Reference of :func:`busybox_image` on disk."""
    config: Path | None = None
    """A configuration file of its own."""

    def command(self, *words: str) -> list[str]:
        """The command line."""
        config = [] if self.config is None else ["--config", str(self.config)]
        return [sys.executable, "-m", "castoff", "--state", str(self.state), *config, *words]

    def __call__(self, *words: str, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Runs it to its end."""
        return subprocess.run(self.command(*words), capture_output=True, timeout=timeout, check=False, **options)

    def run(self, *words: str, flags: Sequence[str] = (), **options: Any) -> subprocess.CompletedProcess[bytes]:
        """``castoff run FLAGS IMAGE WORDS``."""
        return self("run", *flags, self.image, *words, **options)

    def start(self, *words: str, flags: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
        """The same, running; stdout and stderr are pipes unless ``options`` say otherwise."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.command("run", *flags, self.image, *words), **(pipes | options))

    def json(self, *words: str) -> Any:
        """The answer of a command that must succeed."""
        done = self(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def machines(self) -> list[Path]:
        """What is in the machines' directory."""
        return sorted((self.state / "store" / "machines").iterdir())


@contextmanager
def castoff_state(kernels: Path) -> Iterator[Castoff]:
    """A state directory with an image beside it, on a real filesystem; unmounted and deleted at the end.

    Args:
        kernels: A directory of kernels to copy into it, so that none is downloaded.
    """
    directory = Path(tempfile.mkdtemp(prefix="castoff-run.", dir="/var/tmp"))
    castoff = Castoff(directory / "state", f"oci:{directory}/image:latest")
    try:
        write_layout(directory / "image", {"latest": busybox_image()})
        castoff.json("store", "usage")  # makes the store
        shutil.copytree(kernels, castoff.state / "store" / "kernels", dirs_exist_ok=True)
        yield castoff
    finally:
        if castoff.state.exists():
            done = castoff("store", "unmount")
            assert done.returncode == 0, done.stderr
        shutil.rmtree(directory)


def publish(reference: str, built: BuiltImage, kernels: Path, directory: Path) -> str:
    """Pushes an image (by skopeo, through a layout in ``directory``) and publishes its artifact; the key that signed it.

    The host that published is gone afterwards.
    """
    layout = write_layout(directory, {"v1": built})
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests"]
    subprocess.run([*command, f"oci:{layout}:v1", f"docker://{reference}"], check=True, timeout=60)
    with castoff_state(kernels) as publisher:
        done = publisher("publish", reference)
        assert done.returncode == 0, done.stderr
        return publisher("key", "show").stdout.decode().split()[0]


def eventually(what: str, holds: Callable[[], bool], *, timeout: float = 20) -> None:
    """Waits until ``holds``; fails with ``what`` otherwise."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in (b"Z", b"X")


def environment(**more: str) -> dict[str, str]:
    """This process's environment with ``more``."""
    return os.environ | more
