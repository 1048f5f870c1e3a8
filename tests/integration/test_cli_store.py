"""The commands that look after images, root filesystems, the store and the host: no machine is started here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from daemons import Registry
from hostile_registry import HostileRegistry
from machines import Castoff, busybox_image, castoff_state
from oci_builder import Blob, LayerTar, build_image, write_docker_archive, write_layout, write_oci_archive


@pytest.fixture(name="castoff", scope="module")
def _castoff(kernels: Path) -> Iterator[Castoff]:
    """One state directory for all."""
    with castoff_state(kernels) as castoff:
        yield castoff


def _one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that a failure says."""
    text = done.stderr.decode()
    assert re.fullmatch(r"castoff: [^\n]+\n", text), text
    assert done.stdout == b""
    return text


def test_an_image_is_inspected_without_fetching_it_and_its_layers_are_told(castoff: Castoff) -> None:
    """Digest, platform, configuration; none of its layers is here, then all are."""
    before = castoff.json("image", "inspect", castoff.image)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", before["digest"])
    assert before["platform"] == "linux/amd64"
    assert before["config"]["env"] == ["PATH=/bin", "FROM_IMAGE=yes"]
    assert [layer["present"] for layer in before["layers"]] == [False, False]
    assert castoff("rootfs", "build", castoff.image).returncode == 0
    after = castoff.json("image", "inspect", castoff.image)
    assert [layer["present"] for layer in after["layers"]] == [True, True]
    text = castoff("image", "inspect", castoff.image).stdout.decode()
    assert before["digest"] in text and "2 of them here" in text


def test_a_rootfs_is_built_listed_shown_verified_and_removed(castoff: Castoff) -> None:
    """By the beginning of its name, by reference, by digest."""
    built = castoff.json("rootfs", "build", castoff.image, "--size", "2G")
    assert built["provider"] == "layered" and built["size"] == 2 << 30
    assert Path(built["path"]).stat().st_size == 2 << 30
    (one,) = [one for one in castoff.json("rootfs", "list") if one["size"] == 2 << 30]
    assert one["reference"] == castoff.image and len(one["layers"]) == 2
    assert castoff.json("rootfs", "show", one["name"])["name"] == one["name"]
    assert castoff.json("rootfs", "verify", one["name"])["damaged"] == 0
    listed = [line.split()[0] for line in castoff("rootfs", "list").stdout.decode().splitlines()]
    assert len(set(listed)) == len(listed), "sizes of one image are told apart"
    assert castoff("rootfs", "remove", "").returncode == 4, "an unset variable names nothing"
    assert castoff("rootfs", "remove", one["name"]).returncode == 0
    gone = castoff("rootfs", "show", one["name"])
    assert gone.returncode == 3 and "rootfs list" in _one_line(gone)


def test_damage_is_found_told_and_repaired(castoff: Castoff) -> None:
    """One flipped byte of a segment, one of a rootfs' metadata: exit 1, both named; --repair removes both."""
    built = castoff.json("rootfs", "build", castoff.image, "--size", "3G")
    layer = castoff.json("rootfs", "show", built["path"].split("/")[-2])["layers"][0]
    segment = castoff.state / "store" / "layers" / layer.removeprefix("sha256:") / "segment"
    for path, offset in ((segment, 5000), (Path(built["path"]), 1024 + 120)):
        mode = path.stat().st_mode
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))
        path.chmod(mode)
    found = castoff("store", "verify")
    assert found.returncode == 1
    assert layer in found.stdout.decode() and built["path"].split("/")[-2] in found.stdout.decode()
    assert castoff("store", "verify", "--repair").returncode == 1
    assert castoff("store", "verify").returncode == 0
    assert castoff("rootfs", "build", castoff.image).returncode == 0
    assert castoff("store", "verify").returncode == 0


def test_usage_and_prune(castoff: Castoff) -> None:
    """What is told to be unused goes; a dry run removes nothing."""
    castoff("rootfs", "build", castoff.image)
    usage = castoff.json("store", "usage")
    assert usage["layers"] and usage["rootfs"] and usage["total"] > 0
    would = castoff.json("store", "prune", "--dry-run")
    assert would["layers"] and castoff.json("store", "usage")["layers"] == usage["layers"]
    did = castoff.json("store", "prune")
    assert did["layers"] == would["layers"] and did["after"] < did["before"]
    assert castoff.json("store", "usage")["layers"] == []


@pytest.mark.parametrize("size", ["64K", "17T"])
def test_a_size_that_cannot_be_is_refused_with_the_figure(castoff: Castoff, size: str) -> None:
    """Too small for the image, too large for the format."""
    done = castoff("rootfs", "build", castoff.image, "--size", size)
    assert done.returncode == 4
    _one_line(done)


def test_an_output_that_cannot_be_is_refused_before_any_work(castoff: Castoff, tmp_path: Path) -> None:
    """A directory, a device, a place that is not there."""
    for output, code in ((tmp_path / "no" / "where", 3), (Path("/dev/null"), 4)):
        done = castoff("rootfs", "build", castoff.image, "-o", str(output))
        assert done.returncode == code
        _one_line(done)
    assert Path("/dev/null").is_char_device()


def test_an_output_elsewhere_is_a_sparse_copy_with_the_same_bytes(castoff: Castoff, tmp_path: Path) -> None:
    """On a filesystem that cannot share with the store; nothing is left beside it."""
    built = castoff.json("rootfs", "build", castoff.image, "--size", "256M")
    copy = tmp_path / "root.ext4"
    copy.write_bytes(b"old")
    assert castoff("rootfs", "build", castoff.image, "--size", "256M", "-o", str(copy)).returncode == 0
    assert copy.read_bytes() == Path(built["path"]).read_bytes()
    assert copy.stat().st_blocks * 512 < 64 << 20
    assert list(tmp_path.iterdir()) == [copy]


def test_images_of_every_kind_of_place_are_the_same_image(castoff: Castoff, tmp_path: Path, registry: Registry) -> None:
    """A layout, an OCI archive, a docker archive, a registry on loopback: the same layers."""
    image = busybox_image()
    write_layout(tmp_path / "layout", {"v1": image})
    write_oci_archive(tmp_path / "oci.tar", {"v1": image})
    write_docker_archive(tmp_path / "docker.tar", {"team/app:v1": image})
    push = [
        "skopeo",
        "copy",
        "-q",
        "--dest-tls-verify=false",
        f"oci:{tmp_path}/layout:v1",
        f"docker://{registry.host}/team/app:v1",
    ]
    subprocess.run(push, check=True)
    places = [
        f"oci:{tmp_path}/layout:v1",
        f"oci-archive:{tmp_path}/oci.tar",
        f"docker-archive:{tmp_path}/docker.tar",
        f"{registry.host}/team/app:v1",
    ]
    found = [castoff.json("image", "inspect", place) for place in places]
    layers = [[layer["diff_id"] for layer in one["layers"]] for one in found]
    assert all(one == layers[0] for one in layers)
    by_digest = castoff.json("image", "inspect", f"{registry.host}/team/app@{found[3]['digest']}")
    assert by_digest["digest"] == found[3]["digest"]
    assert castoff("rootfs", "build", places[3]).returncode == 0


def _broken_images(directory: Path) -> Iterator[tuple[str, int, str]]:
    """References of images that are not, the code, and what must be told."""
    image = build_image([LayerTar().file("a", b"x" * 5000)], cmd=["/a"])
    yield "team/UPPER", 4, "UPPER"
    yield "", 4, ""
    yield "a" * 9000, 4, ""
    yield "alpine@sha256:123", 4, "sha256"
    yield f"oci:{directory}/missing", 3, "missing"
    yield f"oci-archive:{directory}/missing.tar", 3, "missing"
    write_layout(directory / "tagged", {"v1": image})
    yield f"oci:{directory}/tagged:v2", 3, "v2"
    broken = write_layout(directory / "broken", {"latest": image})
    (broken / "index.json").write_bytes(b'{"schemaVersion": 2, "manifests": 5}')
    yield f"oci:{broken}", 4, "index"
    layerless = write_layout(directory / "layerless", {"latest": image})
    (layerless / "blobs" / image.layers[0].digest.replace(":", "/")).unlink()
    yield f"oci:{layerless}", 3, image.layers[0].digest[7:19]
    changed = write_layout(directory / "changed", {"latest": image})
    (changed / "blobs" / image.layers[0].digest.replace(":", "/")).write_bytes(b"x" * len(image.layers[0].data))
    yield f"oci:{changed}", 4, ""
    foreign = build_image([LayerTar()], platform={"os": "linux", "architecture": "arm64"})
    yield f"oci:{write_layout(directory / 'arm', {'latest': foreign})}", 3, "arm64"
    (directory / "text.tar").write_text("not a tar\n" * 1000)
    yield f"oci-archive:{directory}/text.tar", 4, "text.tar"
    yield "127.0.0.1:1/nobody/listens", 5, "127.0.0.1:1"


def test_broken_images_end_in_one_line_and_the_right_code(castoff: Castoff, tmp_path: Path) -> None:
    """References, layouts, archives, registries that are none; nothing stays in the store."""
    config = tmp_path / "config.toml"
    config.write_text("[image]\nretries = 0\n")
    for reference, code, told in _broken_images(tmp_path):
        done = castoff("--config", str(config), "rootfs", "build", reference)
        line = _one_line(done)
        assert done.returncode == code, (reference[:80], line)
        assert told in line, (reference[:80], line)
    assert not list((castoff.state / "store" / "tmp").iterdir())
    assert castoff.machines == []


def test_names_that_would_steer_a_terminal_are_written_out(castoff: Castoff, tmp_path: Path) -> None:
    """In listings and in errors."""
    layout = write_layout(tmp_path / "evil\x1b[31m", {"latest": busybox_image(labels={"x": "y"})})
    assert castoff("rootfs", "build", f"oci:{layout}").returncode == 0
    for words in (["rootfs", "list"], ["image", "inspect", f"oci:{layout}"]):
        assert b"\x1b" not in castoff(*words).stdout
    assert b"\x1b" not in castoff("image", "inspect", f"oci:{layout}x").stderr


def test_doctor_tells_what_there_is_and_how_to_get_the_rest(castoff: Castoff) -> None:
    """Everything the documentation promises is looked at; what works needs no advice, what does not has some."""
    done = castoff("doctor", "--json")
    answer = json.loads(done.stdout)
    found = {finding["name"]: finding for finding in answer["findings"]}
    machines = {"qemu", "kernel", "kvm", "reflink", "mkfs.xfs", "firecracker", "limits", "tap", "nftables"}
    assert set(found) == machines | {"fuse", "fanotify", "lazy", "containerd"}
    served = "a plain file for each machine" if found["fanotify"]["works"] else "a read-only base below an overlay"
    assert not found["lazy"]["works"] or served in found["lazy"]["found"]
    assert all(finding["gives"] and (finding["works"] or finding["how"]) for finding in found.values())
    assert found["qemu"]["works"] and found["kernel"]["works"] and found["reflink"]["works"]
    assert (answer["able"], done.returncode) == (True, 0)
    lacking = castoff("doctor", env=os.environ | {"PATH": "/nonexistent"})
    assert lacking.returncode == 1 and b"NO   qemu" in lacking.stdout


def test_a_state_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """One line, not a traceback, for a user who may not write there."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    os.chown(state, 65534, 65534)
    # Root without its capabilities is a user like any other, and can still run this Python wherever it is installed.
    command = ["setpriv", "--bounding-set=-all", sys.executable, "-m", "castoff", "--state", str(state), "rootfs", "list"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 6
    _one_line(done)


def test_a_state_that_can_be_none_is_refused(tmp_path: Path) -> None:
    """A file, a path through a file, a place where nothing can be made."""
    (tmp_path / "file").touch()
    for state in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/castoff")):
        done = subprocess.run(
            [sys.executable, "-m", "castoff", "--state", str(state), "rootfs", "list"], capture_output=True, check=False
        )
        assert done.returncode == 4
        assert str(state) in _one_line(done)


async def _slowly(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
    """A fault: blobs of some size take two and a half seconds."""
    if document is None or len(document.data) < 100_000:
        return None
    response = web.StreamResponse(headers={"Content-Length": str(len(document.data))})
    await response.prepare(request)
    piece = -(-len(document.data) // 25)
    for at in range(0, len(document.data), piece):
        await response.write(document.data[at : at + piece])
        await asyncio.sleep(0.1)
    return response


async def test_progress_lines_tell_of_a_long_conversion_and_json_is_silent(castoff: Castoff) -> None:
    """Without a terminal plain lines on stderr; none where a script reads."""
    registry = HostileRegistry()
    registry.add("team/slow", build_image([LayerTar().file("f", os.urandom(2_000_000))], cmd=["x"]))
    registry.faults.append(_slowly)
    async with registry.running() as host:
        done = await asyncio.to_thread(castoff, "rootfs", "build", f"{host}/team/slow")
        assert done.returncode == 0, done.stderr
        line = rb"^castoff: layers\.convert [0-9a-f]{12}: \d+ %, .* of 2\.00 MB, .*/s, .* left$"
        assert re.search(line, done.stderr, re.MULTILINE), done.stderr
        await asyncio.to_thread(castoff, "store", "prune")
        done = await asyncio.to_thread(castoff, "rootfs", "build", f"{host}/team/slow", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
