"""Boot profiles from end to end: one host's lazy boot records what it read, the next host has that before it asks.

A real registry, three state directories, real guests.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import daemons
from castoff.layers.toc import CHUNK
from castoff.store.hydration import present_chunks
from machines import Castoff, busybox_layer, castoff_state, eventually, publish
from oci_builder import BuiltImage, LayerTar, build_image

READ = [7, 2, 11]
"""Which of the files the command reads before its first word."""


def image() -> BuiltImage:
    """Busybox, and twenty files of four chunks each, of which a boot reads three."""
    layer = LayerTar().directory("srv")
    for number in range(20):
        layer.file(f"srv/{number}", random.Random(number).randbytes(4 * CHUNK))
    return build_image([busybox_layer(), layer], cmd=["sh"], env=["PATH=/bin"])


def script() -> str:
    """The command: reads, tells what it read, and waits to be let go."""
    return f"cd /srv; cat {' '.join(map(str, READ))} | sha256sum; read word"


def expected() -> bytes:
    """Its first word."""
    data = b"".join(random.Random(number).randbytes(4 * CHUNK) for number in READ)
    return f"{hashlib.sha256(data).hexdigest()}  -\n".encode()


@dataclass(frozen=True)
class Fleet:
    """An image in a registry, with its artifact, and the keys of who published."""

    reference: str
    built: BuiltImage
    publisher: str


@pytest.fixture(scope="module")
def fleet(registry: daemons.Registry, kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Published by a host that is gone by now, without a profile: it booted nothing."""
    reference = f"{registry.host}/profiles/app:v1"
    built = image()
    return Fleet(reference, built, publish(reference, built, kernels, tmp_path_factory.mktemp("layout") / "image"))


@contextmanager
def host(kernels: Path, fleet: Fleet, *trusted: str, **settings: Any) -> Iterator[Castoff]:
    """A host that has nothing, and trusts the publisher and ``trusted``."""
    with castoff_state(kernels) as made:
        config = made.state.parent / "config.toml"
        values = {"hydrate.background": False, **settings}
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        castoff = replace(made, image=fleet.reference, config=config)
        for key in (fleet.publisher, *trusted):
            done = castoff("trust", "add", key)
            assert done.returncode == 0, done.stderr
        yield castoff


def boot(castoff: Castoff, file: Path, *, until: str = "") -> tuple[str, dict[str, Any]]:
    """Boots lazily until the first word, and the machine's events say ``until``; all that they say, and its timeline."""
    process = castoff.start(
        "sh", "-c", script(), flags=["-i", "--lazy", "always", "--timeline", str(file)], stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == expected(), process.stderr and process.stderr.read()
        (machine,) = castoff.machines
        events = machine / "lazy.events"
        deadline = time.monotonic() + 60  # it is said at the end of the stream, which a busy host lets wait
        while until not in (said := events.read_text() if events.exists() else "") and time.monotonic() < deadline:
            time.sleep(0.05)
        _, errors = process.communicate(b"go\n", timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return said, json.loads(file.read_bytes())


def step(timeline: dict[str, Any], name: str) -> dict[str, Any]:
    """The step of that name."""
    (found,) = [step for step in timeline["steps"] if step["name"] == name]
    attributes: dict[str, Any] = found.get("attributes", {})
    return attributes


def here(castoff: Castoff, fleet: Fleet) -> set[int]:
    """Chunks of the upper layer that are here."""
    layer = castoff.state / "store" / "layers" / fleet.built.diff_ids[1].removeprefix("sha256:")
    return set(present_chunks(layer).nonzero()[0].tolist())


def test_a_profile_goes_from_host_to_host(fleet: Fleet, kernels: Path, tmp_path: Path) -> None:
    """Recorded by the first lazy boot anywhere, published, and streamed to the next host as its create begins."""
    with host(kernels, fleet, **{"artifact.publish": "auto"}) as first, host(kernels, fleet) as second:
        assert first("profile", "show", first.image).returncode != 0
        _, timeline = boot(first, tmp_path / "first.json")
        assert "boots" not in step(timeline, "rootfs.boot_profile")

        own = first.json("profile", "show", first.image)
        assert len(own["boots"]) == 1
        read = [name for run in own["order"] for name in run["files"]]
        assert [name for name in read if name.startswith("/srv")] == [f"/srv/{number}" for number in READ]
        eventually(
            "the profile is published", lambda: first.json("profile", "show", first.image)["published"] is not None, timeout=30
        )
        published = first.json("profile", "show", first.image)["published"]
        assert published["boots"] == 1

        key = first("key", "show").stdout.decode().split()[0]
        assert second("trust", "add", key).returncode == 0
        said, timeline = boot(second, tmp_path / "second.json", until="the hot pack brought")
        assert step(timeline, "rootfs.boot_profile")["hot_pack"] == published["hot_pack"]["size"]
        chunks = sum(run["chunks"] for run in own["order"])
        assert f"the hot pack brought {chunks} chunks, {published['hot_pack']['size']} bytes came" in said
        again, _ = boot(second, tmp_path / "again.json")
        assert "hot pack" not in again, "what it would bring is here"
        merged = second.json("profile", "show", second.image)
        assert len(merged["boots"]) == 3
        assert merged["published"]["boots"] == 1, "this host does not publish"


def test_a_profile_of_a_stranger_is_not_used(fleet: Fleet, kernels: Path, tmp_path: Path) -> None:
    """The artifact counts and the profile does not: the boot records its own."""
    with host(kernels, fleet) as castoff:
        _, timeline = boot(castoff, tmp_path / "timeline.json")
        assert "boots" not in step(timeline, "rootfs.boot_profile")
        found = castoff.json("profile", "show", castoff.image)
        assert (len(found["boots"]), found["published"]) == (1, None)


def test_a_silent_command_tells_that_it_is_ready(fleet: Fleet, kernels: Path, tmp_path: Path) -> None:
    """A server that prints nothing runs /dev/castoff/ready; what it reads afterwards is no part of the profile."""
    command = "cat /srv/3 >/dev/null; /dev/castoff/ready; read word; cat /srv/4 >/dev/null; read word"
    with host(kernels, fleet) as castoff:
        process = castoff.start("sh", "-c", command, flags=["-i", "--lazy", "always"], stdin=subprocess.PIPE)
        try:
            assert process.stdin is not None
            eventually("a profile", lambda: castoff("profile", "show", castoff.image).returncode == 0)
            before = here(castoff, fleet)
            process.stdin.write(b"on\n")
            process.stdin.flush()
            eventually("the other file comes in", lambda: len(here(castoff, fleet)) > len(before) + 2)
            process.communicate(b"end\n", timeout=60)
        finally:
            process.kill()
        found = castoff.json("profile", "show", castoff.image)
        read = {name for run in found["order"] for name in run["files"] if name.startswith("/srv")}
        assert read == {"/srv/3"}


def test_what_was_recorded_is_published_and_preloaded(fleet: Fleet, kernels: Path, tmp_path: Path) -> None:
    """`castoff publish` takes the profile along; `castoff preload --profile-only` brings just its chunks."""
    with host(kernels, fleet) as first, host(kernels, fleet) as second:
        boot(first, tmp_path / "timeline.json")
        own = first.json("profile", "show", first.image)
        assert own["published"] is None
        assert second("preload", "--profile-only", second.image).returncode != 0, "nobody has published one"
        done = first("publish", first.image)
        assert done.returncode == 0, done.stderr
        key = first("key", "show").stdout.decode().split()[0]
        assert second("trust", "add", key).returncode == 0
        done = second("preload", "--profile-only", second.image)
        assert done.returncode == 0, done.stderr
        layer = fleet.built.diff_ids[1]
        wanted = {
            number
            for run in own["order"]
            for number in range(run["first"], run["first"] + run["chunks"])
            if run["layer"] == layer
        }
        assert here(second, fleet) == wanted
