"""A machine boots lazily, reads all of its image and writes; hydrator, keeper, castoff and VMM are killed meanwhile.

A real registry behind a slow proxy, a real guest. CASTOFF_CRASH_KILLS=50 for a long run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import daemons
from castoff.hydrate.keeper_client import connect
from castoff.layers.toc import CHUNK
from castoff.store.extents import clone_file
from faulty_proxy import faulty_proxy
from machines import Castoff, busybox_layer, castoff_state, eventually, is_running
from oci_builder import BuiltImage, LayerTar, build_image, write_layout

KILLS = int(os.environ.get("CASTOFF_CRASH_KILLS", "4"))
FILES = 40
pytestmark = pytest.mark.timeout(300 + 30 * KILLS)
DICE = random.Random(os.environ.get("CASTOFF_CRASH_SEED", "1"))

GUEST = """
mkdir /w; echo up
for name in $(seq 0 39); do
    sha256sum /srv/$name > /w/$name && sync /w/$name && echo "wrote $name" || exit 9
done
for name in $(seq 0 39); do cat /w/$name; done
"""


def files() -> dict[str, bytes]:
    """Of the image, in a layer of their own."""
    dice = random.Random(12)
    return {f"srv/{number}": dice.randbytes(dice.choice([5000, CHUNK, 2 * CHUNK + 9])) for number in range(FILES)}


def hashes() -> list[str]:
    """What the guest says of them."""
    return [f"{hashlib.sha256(data).hexdigest()}  /{name}" for name, data in files().items()]


@pytest.fixture(name="image", scope="module")
def _image(registry: daemons.Registry, kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(path of an image in the registry, with its artifact; the key that it is signed by)."""
    layer = LayerTar().directory("srv")
    for name, data in files().items():
        layer.file(name, data)
    built: BuiltImage = build_image([busybox_layer(), layer], cmd=["sh", "-c", GUEST], env=["PATH=/bin"])
    layout = write_layout(tmp_path_factory.mktemp("layout") / "image", {"v1": built})
    copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests"]
    subprocess.run([*copy, f"oci:{layout}:v1", f"docker://{registry.host}/killed/app:v1"], check=True, timeout=60)
    with castoff_state(kernels) as publisher:
        done = publisher("publish", f"{registry.host}/killed/app:v1")
        assert done.returncode == 0, done.stderr
        return "killed/app:v1", publisher("key", "show").stdout.decode().split()[0]


@pytest.fixture
def castoff(registry: daemons.Registry, image: tuple[str, str], kernels: Path, tmp_path: Path) -> Iterator[Castoff]:
    """A host that has nothing; the registry is slow to answer."""
    with faulty_proxy(registry.host) as proxy, castoff_state(kernels) as made:
        proxy.delay = 0.05
        config = tmp_path / "config.toml"
        config.write_text("hydrate.background = false\nhydrate.read_ahead = 0\n")
        found = replace(made, image=f"{proxy.host}/{image[0]}", config=config)
        assert found("trust", "add", image[1]).returncode == 0
        yield found
        for pid in [*pids(found, "castoff.hydrate.keeper"), *pids(found, "castoff.hydrate")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def pids(castoff: Castoff, module: str) -> list[int]:
    """Those that run a module over the state directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if module.encode() in words and str(castoff.state).encode() in words and is_running(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


def kill(castoff: Castoff, *modules: str) -> None:
    """Those that run; all of them are stopped first, so that none can start another again."""
    found = [pid for module in modules for pid in pids(castoff, module)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    eventually("they are dead", lambda: not any(map(is_running, found)))


class Boot:
    """``castoff run`` of the image, and what it says."""

    def __init__(self, castoff: Castoff) -> None:
        self.process = castoff.start(flags=["--lazy", "always"], bufsize=0)
        self.said = b""
        self.line()

    @property
    def is_running(self) -> bool:
        """Whether the guest is still reading its image."""
        return b"wrote 39" not in self.said and self.process.poll() is None

    def line(self) -> bytes:
        """The next line; empty at the end."""
        assert self.process.stdout is not None
        found = self.process.stdout.readline()
        self.said += found
        return found

    def until_pause(self, seconds: float) -> None:
        """Reads on for so long, or to the end."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and select.select([self.process.stdout], [], [], left)[0]:
            if not self.line():
                return

    def until_written(self, count: int) -> None:
        """Reads on until the guest has said so often that a file of its own is on disk."""
        while self.said.count(b"wrote") < count:
            assert self.line()

    def outcome(self) -> tuple[int, list[str]]:
        """(exit status, the hashes)."""
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        status = self.process.wait(60)
        return status, [line for line in self.said.decode().splitlines() if "  /srv/" in line]

    def errors(self) -> str:
        """What castoff complained of."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def booted(castoff: Castoff) -> Iterator[Boot]:
    boot = Boot(castoff)
    try:
        assert boot.said == b"up\n", boot.process.stderr and boot.process.stderr.read()
        yield boot
    finally:
        boot.close()


@pytest.mark.parametrize(
    "killed", [("castoff.hydrate",), ("castoff.hydrate.keeper",), ("castoff.hydrate", "castoff.hydrate.keeper")]
)
def test_a_boot_outlives_hydrator_and_keeper(castoff: Castoff, killed: tuple[str, ...]) -> None:
    """Each killed a few times, or both at once: the guest waits, goes on, and every byte that it reads is right."""
    left = KILLS if len(killed) == 1 else -(-KILLS // 4)
    while left > 0:
        with booted(castoff) as boot:
            before = left
            while left > 0 and boot.is_running:
                kill(castoff, *killed)
                left -= 1
                eventually("there is another", lambda: not boot.is_running or all(pids(castoff, module) for module in killed))
                boot.until_pause(0.1 + 0.4 * DICE.random())
            assert left < before
            assert boot.outcome() == (0, hashes()), boot.errors()
            if len(killed) == 2:
                assert "was taken back from its VMM" in (castoff.state / "hydrate" / "log").read_text()
        assert castoff("store", "prune").returncode == 0


def snapshot(clone: Path, target: Path) -> None:
    """The clone's bytes as they are on disk: also what has not come in."""
    with clone.open("rb") as source, target.open("wb") as copy:
        assert clone_file(source.fileno(), copy.fileno())


def written(clone: Path) -> dict[int, str]:
    """Files of the guest's, after its journal was replayed."""
    checked = subprocess.run(["/sbin/e2fsck", "-fp", str(clone)], capture_output=True, text=True, check=False)
    assert checked.returncode in (0, 1), checked.stdout
    found = {}
    for number in range(FILES):
        done = subprocess.run(["/sbin/debugfs", "-R", f"cat /w/{number}", str(clone)], capture_output=True, text=True, check=True)
        if done.stdout:
            found[number] = done.stdout.strip()
    return found


def test_what_a_guest_synced_outlives_its_vmm(castoff: Castoff) -> None:
    """The VMM killed at any instant of a boot that still fills: what fsync(2) had said was there is there, and right."""
    for _ in range(KILLS if KILLS >= 50 else 1):
        with booted(castoff) as boot:
            boot.until_written(DICE.randrange(FILES * 3 // 4))  # however fast the machine is
            boot.until_pause(0.1 * DICE.random())
            (machine,) = castoff.machines
            vmm = json.loads((machine / "machine.json").read_bytes())["vmm_state"]["pid"]
            os.kill(boot.process.pid, signal.SIGSTOP)  # else it removes the machine
            os.kill(vmm, signal.SIGKILL)
            eventually("it is dead", lambda vmm=vmm: not is_running(vmm))  # type: ignore[misc]
            copy = castoff.state / "store" / "copy.ext4"
            snapshot(machine / "root.ext4", copy)
            os.kill(boot.process.pid, signal.SIGCONT)
            status, _ = boot.outcome()
            assert status not in (0, 9)
        assert boot.said.count(b"wrote") < FILES  # it was in the midst of it
        synced = [int(line.split()[1]) for line in boot.said.decode().splitlines() if line.startswith("wrote ")]
        found = written(copy)
        assert [found.get(number) for number in synced] == hashes()[: len(synced)]
        copy.unlink()
        eventually("the machine is gone", lambda: castoff.machines == [])
        with booted(castoff) as boot:
            assert boot.outcome() == (0, hashes())
        assert castoff("store", "prune").returncode == 0


def test_a_castoff_that_is_killed_leaves_nothing_for_long(castoff: Castoff) -> None:
    """At any instant of a create or of what follows: the next one ends what is left, and its own machine is right."""
    for number in range(KILLS):
        killed_castoff(castoff, number)
    with booted(castoff) as boot:
        assert boot.outcome() == (0, hashes()), boot.errors()
    eventually("no machine is left", lambda: castoff.machines == [])
    keeper = connect(castoff.state)
    eventually("nothing of one is held", lambda: not keeper.take())
    keeper.close()
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_vmm(path, castoff.state)]


def killed_castoff(castoff: Castoff, number: int) -> None:
    """Starts ``castoff run`` and kills it; ``number`` says how far it is: each part gets its share, on any machine."""
    before = set(castoff.machines)
    process = castoff.start(flags=["--lazy", "always"])

    def is_so_far() -> bool:
        match number % 4:
            case 0:
                return True
            case 1:
                return any((machine / "lazy.json").exists() for machine in new(castoff, before))
            case 2:
                return any(vmm_of(machine) for machine in new(castoff, before))
            case _:
                return bool(select.select([process.stdout], [], [], 0)[0])  # the guest runs

    eventually("it is so far", lambda: process.poll() is not None or is_so_far(), timeout=60)
    time.sleep(0.3 * DICE.random())
    process.kill()
    process.communicate()


def new(castoff: Castoff, before: set[Path]) -> set[Path]:
    """Machines' directories that were not there before."""
    return set(castoff.machines) - before


def vmm_of(machine: Path) -> int | None:
    """The pid of a machine's VMM, where its record has it already."""
    try:
        pid: int | None = json.loads((machine / "machine.json").read_bytes()).get("vmm_state", {}).get("pid")
    except FileNotFoundError:
        return None
    return pid


def is_vmm(cmdline: Path, state: Path) -> bool:
    """Whether it is a VMM over the state directory."""
    with contextlib.suppress(OSError):
        line = cmdline.read_bytes()
        return b"qemu" in line and str(state).encode() in line
    return False
