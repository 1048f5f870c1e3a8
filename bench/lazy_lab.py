"""Where lazy boots are measured: a host that has nothing, and beside it one that has all, both behind one shaped link."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests import daemons

from bench.images.__main__ import make
from bench.link import Link, link
from bench.measure import Failed, run, started
from bench.stage import Stage
from castoff.hydrate.profile_file import read_profile
from castoff.image.digest import Digest
from castoff.layers.index import read_index
from castoff.store.layers import layer_path

__all__ = ["PROGRAM", "REPOSITORIES", "Boot", "Lab", "lab", "push"]

PROGRAM = ("python3", "-c", "import numpy, pandas; print(numpy.__version__, pandas.__version__, flush=True)")
"""READY is its first line."""
REPOSITORIES = ("plain", "profiled")
"""Of the image; a boot profile is published in the second alone."""
_END_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Boot:
    """One ``castoff run``."""

    seconds: float
    """From the command line to the command's first line."""
    came: int
    """Bytes that came over the link meanwhile."""
    steps: list[dict[str, Any]]
    """Its timeline's."""
    events: str
    """What the hydrator said of the machine until then."""

    def told(self, name: str) -> dict[str, Any]:
        """The attributes of the step ``name``; none where there was no such step."""
        return next((step.get("attributes", {}) for step in self.steps if step["name"] == name), {})

    def begun(self, name: str) -> float:
        """Seconds from the command line to the first step ``name``."""
        return min(float(step["started"]) for step in self.steps if step["name"] == name)

    def took(self, name: str) -> float:
        """Seconds of all steps ``name`` together."""
        return float(sum(step["ended"] - step["started"] for step in self.steps if step["name"] == name))


@dataclass(frozen=True, slots=True)
class Lab:
    """What lazy boots are measured with. The image is in two repositories, of which one gets a boot profile."""

    warm: Stage
    """Whose state has the rootfs, complete."""
    cold: Stage
    """Whose state is emptied before each boot. It has published the artifacts, so its own key is on them."""
    near: daemons.Registry
    """The same registry on loopback."""
    far: Link
    image: str
    """The name of the image."""
    digest: Digest

    def reference(self, repository: str, host: str) -> str:
        """The image in ``plain`` or ``profiled``."""
        return f"{host}/{repository}/{self.image}@{self.digest}"

    def settings(self, *, background: bool = False, front: str = "auto") -> Path:
        """A configuration file."""
        path = self.cold.directory / f"lazy-{front}-{background}.toml"
        path.write_text(
            f'image.insecure_registries = ["{self.far.host}", "{self.far.late}"]\n'
            f'hydrate.background = {json.dumps(background)}\nrootfs.front = "{front}"\nvmm.qemu.accelerator = "tcg"\n'
        )
        return path

    def command(self, settings: Path, *words: str | Path) -> list[str]:
        """A command line of the host that has nothing."""
        program = self.cold.castoff()[0]
        return [program, "--config", str(settings), "--state", str(self.cold.state), "--quiet", *map(str, words)]

    def forget(self) -> None:
        """The cold host has nothing again: no layer, no profile, no manifest, and no hydrator."""
        self.end_hydrator()
        areas = ["rootfs", "layers", "images/sha256", *(["profiles"] if (self.cold.store / "profiles").exists() else [])]
        self.cold.forget(*areas)

    def end_hydrator(self) -> None:
        """Ends the cold host's hydrator, which has nothing to serve, and waits for its keeper, too."""
        for pid in self.hydrator():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 20
        while any(True for _ in self.hydrator()):
            if time.monotonic() > end:
                raise Failed("the hydrator does not end")
            time.sleep(0.02)

    def hydrator(self) -> Iterator[int]:
        """The process id of the cold host's hydrator, where it runs."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"castoff.hydrate" in words and str(self.cold.state).encode() in words:
                    yield int(path.parent.name)

    def boot(self, reference: str, *, settings: Path, mode: str = "always", program: Sequence[str] = PROGRAM) -> Boot:
        """Boots the cold host's machine until the first line, and then to its end."""
        timeline = self.cold.directory / "lazy.timeline"
        run_words = ("run", "--vmm", "qemu", "--network", "none", "--lazy", mode, "--timeline", timeline, reference)
        return self._boot(self.command(settings, *run_words, *program), timeline, self.cold)

    def boot_warm(self, program: Sequence[str] = PROGRAM) -> Boot:
        """The same on the host that has all."""
        timeline = self.warm.directory / "lazy.timeline"
        words = ("run", "--vmm", "qemu", "--network", "none", "--timeline", timeline, self.reference("plain", self.near.host))
        return self._boot(self.warm.castoff("--quiet", *words, *program), timeline, self.warm)

    @contextlib.contextmanager
    def served(self, reference: str, settings: Path, program: Sequence[str]) -> Iterator[Path]:
        """A lazy machine that runs for the block, from its first line on; its directory."""
        before = set((self.cold.store / "machines").iterdir())
        command = self.command(settings, "run", "--vmm", "qemu", "--network", "none", "--lazy", "always", reference, *program)
        with started(command) as process:
            assert process.stdout is not None and process.stderr is not None
            if not process.stdout.readline():
                raise Failed(f"castoff run said nothing: {process.stderr.read().strip()[-1500:]}")
            (found,) = set((self.cold.store / "machines").iterdir()) - before
            yield found

    def _boot(self, command: list[str], timeline: Path, stage: Stage) -> Boot:
        os.sync()
        before = self.far.received()
        begun = time.perf_counter()
        with started(command) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds, came = time.perf_counter() - begun, self.far.received() - before
            found = [path.read_text() for path in (stage.store / "machines").glob("*/lazy.events") if path.exists()]
            _, errors = process.communicate(timeout=_END_SECONDS)
        if process.returncode != 0 or not line.strip():
            raise Failed(f"castoff run ended with {process.returncode}: {errors.strip()[-1500:]}")
        return Boot(seconds, came, json.loads(timeline.read_bytes())["steps"], "".join(found))

    def publish_command(self, reference: str) -> list[str]:
        """Publishes the image's artifact beside it, and the boot profile where there is one; from the host that has nothing."""
        return self.command(self.settings(), "--json", "publish", reference)

    def publish(self, reference: str) -> dict[str, Any]:
        """The same, run; the answer."""
        return self.answer(run(self.publish_command(reference), watch=False).output)

    @staticmethod
    def answer(output: str) -> dict[str, Any]:
        """What a command with ``--json`` said."""
        found: dict[str, Any] = json.loads(output)
        return found

    def packs(self) -> int:
        """Bytes of the image's packs; the cold host has begun its layers."""
        return sum(int(read_index(path).locations.length.sum()) for path in self._indexes())

    def needed(self) -> int:
        """Bytes in the packs of the chunks that the recorded boots read before READY."""
        profile = read_profile(self.cold.store, self.digest)
        if profile is None:
            raise Failed("no boot was recorded")
        lengths = {
            chunk.diff_id: read_index(layer_path(self.cold.store, chunk.diff_id) / "index").locations.length
            for chunk in profile.chunks
        }
        return sum(int(lengths[chunk.diff_id][chunk.number]) for chunk in profile.chunks)

    def _indexes(self) -> list[Path]:
        return sorted((self.cold.store / "layers").glob("*/index"))


@contextlib.contextmanager
def lab(stage: Stage, name: str) -> Iterator[Lab]:
    """The image ``name`` behind a link, published twice, for the block; the warm host has its rootfs."""
    with stage.scratch("lazy") as scratch:
        cold = replace(stage, directory=scratch, state=scratch / "state")
        (scratch / "link").mkdir()
        cold.prepare()
        try:
            with daemons.registry(scratch / "registry") as near, link(scratch / "link", near.directory) as far:
                made = Lab(stage, cold, near, far, name, push(near, name, REPOSITORIES))
                stage.forget()  # what other groups have left
                run(stage.castoff("--quiet", "rootfs", "build", made.reference("plain", near.host)), watch=False)
                yield made
                made.end_hydrator()
        finally:
            subprocess.run(["packaging/unmount", str(scratch)], check=True)


def push(registry: daemons.Registry, name: str, repositories: Iterable[str]) -> Digest:
    """Copies the image ``name`` into repositories of a registry; its digest."""
    layout = make(name)
    for repository in repositories:
        target = f"docker://{registry.host}/{repository}/{name}:latest"
        copy = ["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", f"oci:{layout}:latest", target]
        subprocess.run(copy, check=True)
    return Digest.parse(json.loads((layout / "index.json").read_text())["manifests"][0]["digest"])
