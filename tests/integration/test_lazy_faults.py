"""Lazy boots whose registry fails at random: each ends well, once the fault does, and no guest reads a wrong byte.

A real registry behind a proxy with faults, real guests that hash every file of their image. CASTOFF_LAZY_BOOTS=200 for a long
run, CASTOFF_LAZY_SEED for another; a failure names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import daemons
from castoff.layers.toc import CHUNK
from faulty_proxy import (
    ALL,
    Answer,
    Choose,
    Delay,
    Fault,
    FaultyProxy,
    Request,
    Reset,
    Stall,
    Truncate,
    dice,
    faulty_proxy,
    of_blobs,
    once,
)
from machines import Castoff, busybox_layer, castoff_state, publish
from oci_builder import LayerTar, build_image

BOOTS = int(os.environ.get("CASTOFF_LAZY_BOOTS", "20"))
SEED = int(os.environ.get("CASTOFF_LAZY_SEED", "1"))
GUEST = "echo up; cd /srv && find . -type f | sort | xargs sha256sum"
PASSING: tuple[Fault, ...] = (
    Reset(0),
    Truncate(100),
    Stall(100, 60.0),
    Answer(429),
    Answer(500),
    Answer(503),
    Delay(0.3),
)
"""Faults that a fetch of an index outlives: one that gives another index is refused, and nothing boots; so
is one whose new token does not count either."""
pytestmark = pytest.mark.timeout(180 + 20 * BOOTS)


def files() -> dict[str, bytes]:
    """Of the image: of many sizes, compressible or not, and zeros."""
    chance = random.Random(21)
    found = {f"srv/{number}": chance.randbytes(chance.choice([0, 1, 5000, CHUNK, 3 * CHUNK + 9])) for number in range(24)}
    return found | {"srv/text": b"all work and no play\n" * 40_000, "srv/zeros": bytes(3 * CHUNK)}


def hashes() -> list[str]:
    """What the guest says of them, in order."""
    return sorted(f"{hashlib.sha256(data).hexdigest()}  ./{name.removeprefix('srv/')}" for name, data in files().items())


@pytest.fixture(name="published", scope="module")
def _published(registry: daemons.Registry, kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(path of the image in the registry, whose artifact is beside it; the key that it is signed by)."""
    layer = LayerTar().directory("srv")
    for name, data in files().items():
        layer.file(name, data)
    built = build_image([busybox_layer(), layer], cmd=["sh", "-c", GUEST], env=["PATH=/bin"])
    key = publish(f"{registry.host}/faults/app:v1", built, kernels, tmp_path_factory.mktemp("layout") / "image")
    return "faults/app:v1", key


@dataclass
class Plan:
    """What befalls one boot: one thing of each sort by its number, so that all happen, the others by chance."""

    number: int
    chance: random.Random = field(init=False)
    faults: Choose = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(SEED * 1_000_000 + self.number)
        first = once(ALL[self.number % len(ALL)], of_ranges)
        rate, most, kinds = self.chance.choice([0.1, 0.3, 0.7]), self.chance.choice([2, 8, 25]), self.chance.sample(ALL, 8)
        chunks = dice(self.chance.randrange(1 << 32), rate, kinds, of_ranges, most=most)
        indexes = dice(self.chance.randrange(1 << 32), 0.2, PASSING, of_indexes, most=2)
        self.faults = lambda request: first(request) or chunks(request) or indexes(request)

    def settings(self) -> dict[str, object]:
        """Of the host."""
        return {
            "rootfs.front": self.chance.choice(["fanotify", "fuse"]),
            "hydrate.background": self.chance.random() < 0.5,
            "hydrate.read_ahead": self.chance.choice([0, 8]),
            "sources.timeout": 1.0,
            "sources.quarantine": 2.0,
            "image.read_timeout": 2.0,
        }

    def prepare(self, proxy: FaultyProxy) -> None:
        """What holds from the create on."""
        proxy.seen.clear()
        proxy.tokens, proxy.redirects = self.chance.random() < 0.5, self.chance.random() < 0.5
        proxy.delay = self.chance.choice([0.0, 0.01, 0.04])
        proxy.choose = self.faults

    def disturb(self, proxy: FaultyProxy, still: Callable[[], bool]) -> Iterator[str]:
        """What happens all at once while the guest reads: tokens and URLs expire, the registry is restarted."""
        kinds = list(self._sudden(proxy))
        chosen = self.number % len(kinds)
        while still():
            kinds[chosen][1]()
            yield kinds[chosen][0]
            time.sleep(0.05 + 0.6 * self.chance.random())
            chosen = self.chance.randrange(len(kinds))

    def _sudden(self, proxy: FaultyProxy) -> Iterator[tuple[str, Callable[[], None]]]:
        def restart() -> None:
            proxy.go_down()
            time.sleep(0.5 * self.chance.random())
            proxy.come_up()

        yield "tokens expired", proxy.expire_tokens
        yield "URLs expired", proxy.expire_urls
        yield "restart", restart


def of_ranges(request: Request) -> bool:
    """Whether it reads chunks."""
    return of_blobs(request) and request.range is not None


def of_indexes(request: Request) -> bool:
    """Whether it reads a layer's index."""
    return of_blobs(request) and request.range is None


@contextmanager
def quiet(proxy: FaultyProxy) -> Iterator[None]:
    """The registry is as it should be, for the block."""
    proxy.choose, proxy.tokens, proxy.redirects, proxy.delay = (lambda request: None), False, False, 0.0
    yield


def boot(castoff: Castoff, proxy: FaultyProxy, plan: Plan) -> Counter[str]:
    """Boots a host that has nothing; what befell it."""
    assert castoff.config is not None
    castoff.config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in plan.settings().items()))
    plan.prepare(proxy)
    process = castoff.start(flags=["--lazy", "always"])
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        happened = Counter(plan.disturb(proxy, lambda: process.poll() is None)) if first == b"up\n" else Counter[str]()
        said, errors = process.communicate(timeout=90)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, first) == (0, b"up\n"), f"boot {plan.number} of seed {SEED}: {errors.decode()}"
    assert sorted(said.decode().splitlines()) == hashes(), f"boot {plan.number} of seed {SEED}: {errors.decode()}"
    assert castoff.machines == []
    happened.update(type(request.fault).__name__ for request in list(proxy.seen) if request.fault is not None)
    return happened


def test_lazy_boots_with_faults_at_random(
    published: tuple[str, str],
    registry: daemons.Registry,
    kernels: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """Resets, stalls, truncation, wrong bytes, refusals, what expires, restarts: every file of every boot is right."""
    happened: Counter[str] = Counter()
    with faulty_proxy(registry.host) as proxy, castoff_state(kernels) as made:
        castoff = replace(made, image=f"{proxy.host}/{published[0]}", config=made.state.parent / "config.toml")
        castoff.config.write_text("")  # type: ignore[union-attr]
        assert castoff("trust", "add", published[1]).returncode == 0
        for number in range(BOOTS):
            befell = boot(castoff, proxy, Plan(number))
            happened.update(befell)
            happened["boots with a fault"] += bool(befell)
            with quiet(proxy):
                checked = castoff("store", "verify")
                assert checked.returncode == 0, checked.stdout
                forget(castoff)
    for name, count in happened.items():
        record_testsuite_property(name, count)
    print("\n", BOOTS, "boots:", dict(happened))
    assert happened["boots with a fault"] >= BOOTS * 3 // 4
    if BOOTS >= 20:
        kinds = {type(fault).__name__ for fault in ALL} | {"tokens expired", "URLs expired", "restart"}
        assert kinds <= happened.keys(), f"never: {kinds - happened.keys()}"


def forget(castoff: Castoff) -> None:
    """The host has nothing again; a hydrator that just let go of the layers may hold them for a moment."""
    layers = castoff.state / "store" / "layers"
    deadline = time.monotonic() + 20
    while any(layers.iterdir()):
        assert time.monotonic() < deadline, "layers that nobody needs stay"
        assert castoff("store", "prune").returncode == 0
