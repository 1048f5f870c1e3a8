"""Lazy creates from end to end: one host publishes, another that has nothing boots before its data is here.

A real registry, two state directories, real guests; whatever the guest reads is compared with the image, file by file.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import daemons
from castoff.ext4.compose import compose
from castoff.image.digest import Digest
from castoff.layers.index import read_index
from castoff.layers.pack import HEAD
from castoff.layers.toc import CHUNK
from castoff.rootfs.composition import layer_tables
from castoff.store.hydration import present_chunks
from faulty_proxy import Answer, WrongBytes, dice, faulty_proxy, of_blobs
from machines import Castoff, busybox_layer, castoff_state, eventually, is_running, publish
from oci_builder import BuiltImage, LayerTar, build_image, write_layout

PACK_HEAD = len(HEAD)
HASH_ALL = "cd /srv && find . -type f | sort | xargs sha256sum"


def files() -> dict[str, bytes]:
    """Of the upper layer: of many sizes, some of them large, compressible or not, and zeros."""
    dice = random.Random(11)
    found = {f"srv/{number}": dice.randbytes(dice.choice([0, 1, 4096, 60_000, 300_000])) for number in range(30)}
    found |= {"srv/large": dice.randbytes(12 * CHUNK + 77), "srv/text": b"all work and no play\n" * 50_000}
    return found | {"srv/zeros": bytes(5 * CHUNK), "srv/end": b"the end\n"}


def image() -> BuiltImage:
    """Busybox; a layer of files, of which the next hides and replaces some; and a small one on top."""
    lower = LayerTar().directory("srv").file("srv/hidden", random.Random(5).randbytes(8 * CHUNK)).file("srv/0", b"old")
    upper = LayerTar().directory("srv").whiteout("srv/hidden")
    for name, data in files().items():
        upper.file(name, data)
    return build_image([busybox_layer(), lower, upper], cmd=["sh"], env=["PATH=/bin"])


def hashes() -> list[str]:
    """What HASH_ALL says of the image."""
    return sorted(f"{hashlib.sha256(data).hexdigest()}  ./{name.removeprefix('srv/')}" for name, data in files().items())


@dataclass(frozen=True)
class Published:
    """The image in the registry, its artifact beside it."""

    reference: str
    key: str
    image: BuiltImage


@pytest.fixture(name="published", scope="module")
def _published(registry: daemons.Registry, kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Pushed by skopeo, published by a host of its own, which is gone by now."""
    reference = f"{registry.host}/lazy/app:v1"
    built = image()
    key = publish(reference, built, kernels, tmp_path_factory.mktemp("layout") / "image")
    return Published(reference, key, built)


@contextmanager
def stranger(kernels: Path, published: Published, *, trusts: bool = True, **settings: Any) -> Iterator[Castoff]:
    """A host that has nothing of the image."""
    with castoff_state(kernels) as made:
        config = made.state.parent / "config.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        castoff = replace(made, image=published.reference, config=config)
        if trusts:
            done = castoff("trust", "add", published.key)
            assert done.returncode == 0, done.stderr
        yield castoff


def missing(castoff: Castoff, published: Published) -> int:
    """Chunks that are not here, of all layers."""
    layers = [castoff.state / "store" / "layers" / diff_id.removeprefix("sha256:") for diff_id in published.image.diff_ids]
    return sum(int((~present_chunks(layer)).sum()) for layer in layers)


def is_complete(castoff: Castoff) -> bool:
    return all(layer["present"] for layer in castoff.json("image", "inspect", castoff.image)["layers"])


@pytest.mark.parametrize("front", ["fanotify", "fuse"])
def test_a_host_that_has_nothing_boots_and_every_byte_is_the_images(published: Published, kernels: Path, front: str) -> None:
    """The guest runs while most is missing; whatever it reads then is right, and only that comes in; prune leaves it alone."""
    with stranger(kernels, published, **{"hydrate.background": False, "rootfs.front": front}) as castoff:
        process = castoff.start(
            "sh", "-c", f"echo up; cat >/dev/null; {HASH_ALL}", flags=["-i", "--lazy", "always"], stdin=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"up\n", process.stderr and process.stderr.read()
            absent = missing(castoff, published)
            assert castoff("store", "prune").returncode == 0  # what the machine needs stays
            said, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert (process.returncode, sorted(said.decode().splitlines())) == (0, hashes()), errors
        assert absent > 12, "most of it came in before anybody read it"
        eventually("what was read is in the store", lambda: missing(castoff, published) < absent - 12)
        assert castoff.machines == []


def test_what_comes_in_is_seen_and_the_next_create_is_a_warm_one(published: Published, kernels: Path, tmp_path: Path) -> None:
    """`rootfs list` tells how far it is; when all is here the clone is a plain file; the timeline shows fetch beside boot."""
    with stranger(kernels, published) as castoff:
        flags = ["-i", "--lazy", "always", "--timeline", str(tmp_path / "lazy.json")]
        process = castoff.start("sh", "-c", f"echo up; cat >/dev/null; {HASH_ALL}", flags=flags, stdin=subprocess.PIPE)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"up\n"
            (machine,) = castoff.machines
            assert json.loads((machine / "machine.json").read_bytes())["lazy"]
            eventually("the background fetches the rest", lambda: not (machine / "lazy.state").exists())
            assert json.loads((machine / "lazy.json").read_bytes())["complete"]
            (row,) = castoff.json("rootfs", "list")
            assert (row["hydrated"], row["machines"], row["reference"]) == (1, [machine.name], castoff.image)
            assert missing(castoff, published) == hidden(castoff, published), "what no file of the image has was fetched"
            said, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert (process.returncode, sorted(said.decode().splitlines())) == (0, hashes()), errors
        steps = {step["name"]: step for step in json.loads((tmp_path / "lazy.json").read_bytes())["steps"]}
        assert steps["hydrate.fill"]["started"] < steps["machine.boot"]["ended"] < steps["hydrate.fill"]["ended"]
        assert steps["hydrate.boot"]["ended"] > steps["machine.boot"]["started"]
        assert steps["hydrate.fill"]["attributes"]["here"] == steps["hydrate.fill"]["attributes"]["chunks"]
        assert castoff.machines == []

        done = castoff.run("sh", "-c", HASH_ALL, flags=["--timeline", str(tmp_path / "next.json")])
        assert (done.returncode, sorted(done.stdout.decode().splitlines())) == (0, hashes()), done.stderr
        names = {step["name"] for step in json.loads((tmp_path / "next.json").read_bytes())["steps"]}
        assert not names & {"rootfs.conversion", "rootfs.lazy", "artifact.find", "hydrate.fill"}
        (row,) = castoff.json("rootfs", "list")
        assert row["hydrated"] == 1
        assert castoff("store", "verify").returncode == 0


def hidden(castoff: Castoff, published: Published) -> int:
    """Chunks of layers that no file of the image has."""
    layers = [Digest.parse(diff_id) for diff_id in published.image.diff_ids]
    tables = [(layer, layer_tables(castoff.state / "store" / "layers" / layer.hex)) for layer in layers]
    composition = compose(tables)
    zero = [read_index(castoff.state / "store" / "layers" / layer.hex / "index").zero for layer in layers]
    return sum(int((~composition.live_chunks(number) & ~zero[number]).sum()) for number in range(len(layers)))


def test_preloading_makes_the_next_create_a_warm_one(published: Published, kernels: Path, tmp_path: Path) -> None:
    """From the artifact, with nothing of the origin's blobs; `show` says where every part is, before and after."""
    with stranger(kernels, published) as castoff:
        before = castoff.json("rootfs", "show", castoff.image)
        assert [(layer["chunks"], layer["complete"]) for layer in before["layers"]] == [(None, False)] * 3
        assert before["artifact"]["repository"] == published.reference.rpartition(":")[0]
        assert all(layer["pack_size"] and layer["origin_size"] for layer in before["layers"])
        (tmp_path / "images").write_text(f"# what we run\n{castoff.image}  # the one\n\n")
        (answer,) = castoff.json("preload", "--file", str(tmp_path / "images"), "--limit", "1G/s")
        assert (answer["way"], answer["ready"]) == ("artifact", True)
        assert 0 < answer["fetched"] < sum(layer["pack_size"] for layer in before["layers"]) - 3 * PACK_HEAD
        assert missing(castoff, published) == hidden(castoff, published)
        (again,) = castoff.json("preload", castoff.image)
        assert (again["way"], again["fetched"]) == ("here", 0)
        after = castoff.json("rootfs", "show", castoff.image)
        assert [layer["complete"] for layer in after["layers"]] == [True, False, True]
        assert len(after["rootfs"]) == 1
        done = castoff.run("sh", "-c", HASH_ALL, flags=["--timeline", str(tmp_path / "t.json")])
        assert (done.returncode, sorted(done.stdout.decode().splitlines())) == (0, hashes()), done.stderr
        names = {step["name"] for step in json.loads((tmp_path / "t.json").read_bytes())["steps"]}
        assert not names & {"rootfs.conversion", "rootfs.lazy", "artifact.find", "rootfs.composition"}
        damaged = castoff("rootfs", "verify", "--origin", castoff.image)
        assert (damaged.returncode, damaged.stdout) == (0, b"3 checked, 0 damaged\n")


def test_preloading_goes_on_with_the_other_images_and_says_which_failed(published: Published, kernels: Path) -> None:
    """Exit code 1, a line for each; an image without an artifact that counts is converted, and a line says why."""
    with stranger(kernels, published, trusts=False) as castoff:
        done = castoff("preload", f"{castoff.image}-missing", castoff.image)
        assert done.returncode == 1
        assert done.stdout.decode().splitlines() == [
            f"{castoff.image}-missing: failed",
            f"{castoff.image}: converted from its layers",
        ]
        told = done.stderr.decode()
        assert f"{castoff.image}-missing" in told
        assert "castoff trust add" in told


def test_an_artifact_by_a_key_that_is_not_trusted_is_as_if_it_were_not_there(published: Published, kernels: Path) -> None:
    """auto converts, and says so; always refuses."""
    with stranger(kernels, published, trusts=False) as castoff:
        refused = castoff.run("true", flags=["--lazy", "always"])
        assert refused.returncode == 125
        assert b"no rootfs artifact that counts here" in refused.stderr
        assert b"castoff trust add" in refused.stderr
        done = castoff.run("cat", "/srv/end", flags=["--lazy", "auto"])
        assert (done.returncode, done.stdout) == (0, b"the end\n"), done.stderr
        assert b"castoff trust add" in done.stderr
        assert is_complete(castoff)


@pytest.mark.parametrize("front", ["fanotify", "fuse"])
def test_a_hydrator_that_cannot_start_fails_no_create_that_need_not_be_lazy(
    published: Published, kernels: Path, front: str
) -> None:
    """The artifact counts and its layers have begun when that shows: auto converts, and says so; always refuses."""
    with stranger(kernels, published, **{"rootfs.front": front}) as castoff:
        (castoff.state / "hydrate").write_text("no directory")
        refused = castoff.run("true", flags=["--lazy", "always"])
        assert refused.returncode == 125
        assert b"hydrator" in refused.stderr
        done = castoff.run("sh", "-c", HASH_ALL, flags=["--lazy", "auto"])
        assert (done.returncode, sorted(done.stdout.decode().splitlines())) == (0, hashes()), done.stderr
        assert b"cannot start lazily" in done.stderr
        assert is_complete(castoff)
        assert castoff.machines == []


def test_a_registry_that_goes_makes_the_guest_wait_and_is_told_of(
    published: Published, kernels: Path, registry: daemons.Registry, tmp_path: Path
) -> None:
    """Nothing ends, nothing is wrong: when it is back, all goes on."""
    with faulty_proxy(registry.host) as proxy:
        through = replace(published, reference=published.reference.replace(registry.host, proxy.host))
        with stranger(kernels, through, **{"hydrate.background": False}) as castoff, (tmp_path / "said").open("wb") as said:
            process = castoff.start(
                "sh",
                "-c",
                f"echo up; cat >/dev/null; {HASH_ALL}",
                flags=["-i", "--lazy", "always"],
                stdin=subprocess.PIPE,
                stderr=said,
            )
            assert process.stdout is not None and process.stdin is not None
            try:
                assert process.stdout.readline() == b"up\n"
                assert sum("/referrers/" in request.path for request in proxy.seen) == 1  # artifact and profile are in one list
                proxy.go_down()
                process.stdin.close()
                eventually("it is told of", lambda: b"waits for data" in (tmp_path / "said").read_bytes())
                (machine,) = castoff.machines
                assert proxy.host in (machine / "lazy.events").read_text()
                proxy.come_up()
                hashed = process.stdout.read()
                assert process.wait(60) == 0
            finally:
                process.kill()
                process.stdout.close()
            assert sorted(hashed.decode().splitlines()) == hashes()
            assert b"goes on" in (tmp_path / "said").read_bytes()


def test_what_a_killed_castoff_leaves_the_next_one_removes(published: Published, kernels: Path) -> None:
    """VMM, clone and what the hydrator serves; and the layers that came in stay."""
    with stranger(kernels, published, **{"hydrate.background": False}) as castoff:
        process = castoff.start("sh", "-c", "echo up; sleep 1000", flags=["--lazy", "always"])
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        (machine,) = castoff.machines
        (row,) = castoff.json("rootfs", "list")
        assert 0 < row["hydrated"] < 1
        assert row["machines"] == [machine.name]
        record = json.loads((machine / "machine.json").read_bytes())
        process.kill()
        process.communicate()
        done = castoff.run("cat", "/srv/end")
        assert (done.returncode, done.stdout) == (0, b"the end\n"), done.stderr
        eventually("its VMM is gone", lambda: not is_running(record["vmm_state"]["pid"]))
        eventually("so is its directory", lambda: castoff.machines == [])


def test_a_host_that_had_to_convert_publishes_where_the_settings_say_so(
    kernels: Path, registry: daemons.Registry, tmp_path: Path
) -> None:
    """artifact.publish = "auto": in the background, into the central repository; the next host converts nothing."""
    own = build_image([busybox_layer(), LayerTar().file("srv/own", b"mine\n").directory("srv")], cmd=["cat", "/srv/own"])
    write_layout(tmp_path / "image", {"v1": own})
    central = f"{registry.host}/central/artifacts"
    nothing = Published(f"oci:{tmp_path}/image:v1", "", own)
    settings: dict[str, Any] = {"artifact.repositories": [central], "artifact.publish": "auto"}
    with stranger(kernels, nothing, trusts=False, **settings) as first:
        done = first.run()
        assert (done.returncode, done.stdout) == (0, b"mine\n"), done.stderr
        log = first.state / "publish.log"
        eventually("it is published", lambda: central in log.read_text())
        assert f"{central}@sha256:" in log.read_text()
        key = first("key", "show").stdout.decode().split()[0]
    del settings["artifact.publish"]
    with stranger(kernels, replace(nothing, key=key), **settings) as second:
        (answer,) = second.json("preload", second.image)
        assert answer["way"] == "artifact"
        done = second.run()
        assert (done.returncode, done.stdout) == (0, b"mine\n"), done.stderr
        assert not (second.state / "publish.log").exists()


def test_an_artifact_whose_blobs_are_gone_is_told_and_done_without(
    published: Published, kernels: Path, registry: daemons.Registry
) -> None:
    """The registry lost what the artifact names: auto converts and says so, always says so."""
    own = {blob.digest for blob in published.image.blobs()}
    with faulty_proxy(registry.host) as proxy:
        proxy.choose = lambda request: Answer(404) if of_blobs(request) and request.path.rpartition("/")[2] not in own else None
        through = replace(published, reference=published.reference.replace(registry.host, proxy.host))
        with stranger(kernels, through) as castoff:
            refused = castoff.run("true", flags=["--lazy", "always"])
            assert refused.returncode == 125
            assert b"does not have the index of layer" in refused.stderr
            assert castoff.machines == []
            done = castoff.run("sh", "-c", HASH_ALL)
            assert (done.returncode, sorted(done.stdout.decode().splitlines())) == (0, hashes()), done.stderr
            assert b"cannot start lazily" in done.stderr
            assert is_complete(castoff)


def test_wrong_bytes_reach_no_guest(published: Published, kernels: Path, registry: daemons.Registry) -> None:
    """Of every third answer a byte is another: the guest reads what the image has, and so does the store."""
    with faulty_proxy(registry.host) as proxy:
        through = replace(published, reference=published.reference.replace(registry.host, proxy.host))
        settings = {"sources.quarantine": 0.1}
        with stranger(kernels, through, **settings) as castoff:
            proxy.choose = dice(7, 0.3, [WrongBytes(0), WrongBytes(10_000)], lambda request: request.range is not None)
            done = castoff.run("sh", "-c", HASH_ALL, flags=["--lazy", "always"])
            assert (done.returncode, sorted(done.stdout.decode().splitlines())) == (0, hashes()), done.stderr
            assert any(isinstance(request.fault, WrongBytes) for request in proxy.seen), "nothing was wrong"
            assert castoff("store", "verify").returncode == 0


def test_machines_that_begin_at_once_fetch_each_chunk_once(
    published: Published, kernels: Path, registry: daemons.Registry
) -> None:
    """Three of one image, on a host that has nothing: each reads the image, and the registry is asked as by one."""
    with faulty_proxy(registry.host) as proxy:
        through = replace(published, reference=published.reference.replace(registry.host, proxy.host))
        with stranger(kernels, through) as castoff:
            flags = ["--lazy", "always", "--memory", "128M"]
            running = [castoff.start("sh", "-c", HASH_ALL, flags=flags) for _ in range(3)]
            for process in running:
                said, errors = process.communicate(timeout=120)
                assert (process.returncode, sorted(said.decode().splitlines())) == (0, hashes()), errors
            ranges = [request for request in proxy.blobs() if request.range is not None]
            packs = sum(layer["pack_size"] for layer in castoff.json("rootfs", "show", castoff.image)["layers"])
            assert sum(request.sent for request in ranges) <= packs * 1.05
            assert castoff.machines == []


def test_a_machine_that_is_kept_goes_on_coming_in(published: Published, kernels: Path) -> None:
    """Its disk becomes whole without it, with what it wrote, and goes when it is removed."""
    with stranger(kernels, published) as castoff:
        flags = ["--lazy", "always", "--keep", "--name", "kept"]
        done = castoff.run("sh", "-c", "echo mine > /srv/own; rm /srv/end; sync; echo up", flags=flags)
        assert (done.returncode, done.stdout) == (0, b"up\n"), done.stderr
        (machine,) = castoff.machines
        eventually("it is whole", lambda: json.loads((machine / "lazy.json").read_bytes())["complete"])
        checked = subprocess.run(["e2fsck", "-fn", str(machine / "root.ext4")], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
        read = ["debugfs", "-R", "cat /srv/own", str(machine / "root.ext4")]
        assert subprocess.run(read, capture_output=True).stdout == b"mine\n"
        for name in ("large", "text"):
            read = ["debugfs", "-R", f"cat /srv/{name}", str(machine / "root.ext4")]
            assert subprocess.run(read, capture_output=True).stdout == files()[f"srv/{name}"]
        assert castoff("machine", "remove", "kept").returncode == 0
        assert castoff.machines == []
