"""Images on disk: OCI layouts, tars of them, and docker save's archives."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from castoff.conformance.image_source import check_image_source
from castoff.errors import CastoffError, Invalid, LimitExceeded, NoSpace, NotFound, Unsupported
from castoff.fakes.image_source import FakeImageSource
from castoff.image.digest import Digest
from castoff.image.image import Image, Platform
from castoff.image.known import KnownImages
from castoff.image.opening import open_source
from castoff.image.reference import parse_reference
from castoff.image.settings import ImageSettings
from castoff.image.source import ImageSource
from oci_builder import (
    BuiltImage,
    LayerTar,
    build_image,
    build_index,
    write_docker_archive,
    write_layout,
    write_oci_archive,
)

AMD64 = Platform("linux", "amd64")


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    """Two layers, one of several MiB that do not compress."""
    return build_image([LayerTar().file("big", os.urandom(5 << 20)), LayerTar().file("small", b"x")], cmd=["/bin/sh"])


def opened(text: str, cache: Path, **settings: object) -> ImageSource:
    return open_source(parse_reference(text), ImageSettings(**settings), cache)  # type: ignore[arg-type]


async def resolved(text: str, cache: Path, **settings: object) -> Image:
    source = opened(text, cache, **settings)
    try:
        return await source.resolve(AMD64)
    finally:
        await source.close()


async def test_what_was_resolved_before_is_known_by_its_digest(tmp_path: Path, image: BuiltImage) -> None:
    """Not by its tag, nor for another platform; of many the least recently used goes."""
    other = build_image([LayerTar().file("other", b"x")], cmd=["/bin/other"])
    layout = write_layout(tmp_path / "a", {"v1": image})
    known = KnownImages(most=1)

    async def resolve(text: str, platform: Platform = AMD64) -> Image:
        source = open_source(parse_reference(text), ImageSettings(), tmp_path, known)
        try:
            return await source.resolve(platform)
        finally:
            await source.close()

    first = await resolve(f"oci:{layout}:v1")
    write_layout(layout, {"v1": other})  # the tag moves
    moved = await resolve(f"oci:{layout}:v1")
    assert (first.config.cmd, moved.config.cmd) == (("/bin/sh",), ("/bin/other",))
    config = layout / "blobs" / "sha256" / other.config.digest.removeprefix("sha256:")
    config.rename(config.with_name("away"))
    again = await resolve(f"oci:{layout}@{moved.digest}")
    assert again == replace(moved, reference=f"oci:{layout}@{moved.digest}")  # its config is not read again
    with pytest.raises(NotFound, match="is missing"):
        await resolve(f"oci:{layout}:v1", Platform("linux", "arm64"))
    assert (await resolve(f"oci:{layout}@{first.digest}")).config == first.config
    with pytest.raises(NotFound, match="is missing"):  # one is kept, and that is another now
        await resolve(f"oci:{layout}:v1")


async def test_a_layout_keeps_the_ports_promises(tmp_path: Path, image: BuiltImage) -> None:
    """The conformance suite, on a directory."""
    write_layout(tmp_path / "a", {"v1": image})
    await check_image_source(lambda: opened(f"oci:{tmp_path / 'a'}:v1", tmp_path), AMD64, [blob.data for blob in image.layers])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
async def test_an_oci_archive_keeps_the_ports_promises(tmp_path: Path, image: BuiltImage, mode: str) -> None:
    """The conformance suite, on a tar and on a compressed one."""
    write_oci_archive(tmp_path / "a.tar", {"v1": image}, mode=mode)
    await check_image_source(
        lambda: opened(f"oci-archive:{tmp_path / 'a.tar'}", tmp_path), AMD64, [blob.data for blob in image.layers]
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "a.tar"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
async def test_a_docker_archive_keeps_the_ports_promises(tmp_path: Path, image: BuiltImage, mode: str) -> None:
    """Its blobs are the plain tars, whatever the image was made of."""
    write_docker_archive(tmp_path / "a.tar", {"app:v1": image}, mode=mode)
    await check_image_source(lambda: opened(f"docker-archive:{tmp_path / 'a.tar'}", tmp_path), AMD64, image.tars)


async def test_the_fake_keeps_the_ports_promises(image: BuiltImage, tmp_path: Path) -> None:
    """What other packages test with behaves like the real ones."""
    write_layout(tmp_path / "a", {"v1": image})
    found = await resolved(f"oci:{tmp_path / 'a'}", tmp_path)
    blobs = {Digest.parse(blob.digest): blob.data for blob in image.layers}
    await check_image_source(lambda: FakeImageSource(found, blobs), AMD64, [blob.data for blob in image.layers])


def test_a_layout_needs_no_network_library_and_no_numpy(tmp_path: Path, image: BuiltImage) -> None:
    """What a warm create pays for is what it uses."""
    write_layout(tmp_path / "a", {"v1": image})
    program = f"""
import asyncio, sys
from pathlib import Path
from castoff.image.opening import open_source
from castoff.image.platforms import host_platform
from castoff.image.reference import parse_reference
from castoff.image.settings import ImageSettings
from castoff.image.image import Platform
source = open_source(parse_reference({f"oci:{tmp_path / 'a'}"!r}), ImageSettings(), Path({str(tmp_path)!r}))
asyncio.run(source.resolve(Platform()))
open_source(parse_reference("alpine"), ImageSettings(), Path({str(tmp_path)!r}))
print(sorted({{"aiohttp", "http.client", "numpy", "rich", "zstandard", "isal"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


async def test_tags_choose_and_their_lack_is_told(tmp_path: Path, image: BuiltImage) -> None:
    """One image needs no tag; several do, and the error names them."""
    other = build_image([LayerTar().file("other")])
    write_layout(tmp_path / "a", {"v1": image, "v2": other})
    base = f"oci:{tmp_path / 'a'}"
    assert str((await resolved(f"{base}:v2", tmp_path)).digest) == other.digest
    assert str((await resolved(f"{base}@{other.digest}", tmp_path)).digest) == other.digest
    with pytest.raises(Invalid, match="v1, v2"):
        await resolved(base, tmp_path)
    with pytest.raises(NotFound, match="v1, v2"):
        await resolved(f"{base}:v3", tmp_path)


async def test_a_layout_of_several_platforms_without_tags(tmp_path: Path, image: BuiltImage) -> None:
    """index.json itself may be the index, as buildx writes it."""
    arm = build_image([LayerTar().file("arm")], platform={"os": "linux", "architecture": "arm64"})
    write_layout(tmp_path / "a", {"": build_index([arm, image])})
    assert str((await resolved(f"oci:{tmp_path / 'a'}", tmp_path)).digest) == image.digest


@pytest.mark.parametrize(
    ("names", "word"),
    [([], "no index.json"), (["manifest.json"], "docker-archive:")],
)
async def test_a_directory_that_is_no_layout(tmp_path: Path, names: list[str], word: str) -> None:
    """Says what is missing and what it may be instead."""
    for name in names:
        (tmp_path / name).write_text("[]")
    with pytest.raises(NotFound, match=word):
        await resolved(f"oci:{tmp_path}", tmp_path)


async def test_a_missing_path_and_special_files(tmp_path: Path, image: BuiltImage) -> None:
    """A FIFO or a directory in a blob's place is an error at once and never a hang."""
    with pytest.raises(NotFound, match="not a directory"):
        opened(f"oci:{tmp_path / 'no'}", tmp_path)
    with pytest.raises(NotFound, match="does not exist"):
        opened(f"oci-archive:{tmp_path / 'no'}", tmp_path)
    with pytest.raises(Invalid, match="not a regular file"):
        opened(f"oci-archive:{tmp_path}", tmp_path)
    write_layout(tmp_path / "a", {"v1": image})
    found = await resolved(f"oci:{tmp_path / 'a'}", tmp_path)
    blob = tmp_path / "a" / "blobs" / "sha256" / found.layers[0].digest.hex
    source = opened(f"oci:{tmp_path / 'a'}", tmp_path)
    blob.unlink()
    with pytest.raises(NotFound, match="missing"):
        async with source.open_blob(found.layers[0]):
            pass
    os.mkfifo(blob)
    with pytest.raises(Invalid, match="not a regular file"):
        async with source.open_blob(found.layers[0]):
            pass
    blob.unlink()
    blob.write_bytes(b"short")
    with pytest.raises(Invalid, match="its manifest says"):
        async with source.open_blob(found.layers[0]):
            pass


async def test_a_blob_that_shrinks_while_it_is_read(tmp_path: Path, image: BuiltImage) -> None:
    """Ends in an error and not in fewer bytes."""
    write_layout(tmp_path / "a", {"v1": image})
    source = opened(f"oci:{tmp_path / 'a'}", tmp_path)
    found = await source.resolve(AMD64)
    with pytest.raises(Invalid, match="ended after"):
        async with source.open_blob(found.layers[0]) as pieces:
            os.truncate(tmp_path / "a" / "blobs" / "sha256" / found.layers[0].digest.hex, 10)
            async for _ in pieces:
                pass


async def test_docker_archives_are_chosen_by_name(tmp_path: Path, image: BuiltImage) -> None:
    """As Docker reads names: `app` is `docker.io/library/app:latest`."""
    other = build_image([LayerTar().file("other")])
    path = write_docker_archive(tmp_path / "a.tar", {"app:v1": image, "ghcr.io/x/app:latest": other})
    assert len((await resolved(f"docker-archive:{path}:app:v1", tmp_path)).layers) == 2
    assert len((await resolved(f"docker-archive:{path}:docker.io/library/app:v1", tmp_path)).layers) == 2
    found = await resolved(f"docker-archive:{path}:ghcr.io/x/app", tmp_path)
    assert [str(layer.diff_id) for layer in found.layers] == list(other.diff_ids)
    with pytest.raises(NotFound, match="app:v1"):
        await resolved(f"docker-archive:{path}:app:v2", tmp_path)
    with pytest.raises(Invalid, match="holds 2 images"):
        await resolved(f"docker-archive:{path}", tmp_path)


async def test_a_docker_archives_digest_is_the_same_everywhere(tmp_path: Path, image: BuiltImage) -> None:
    """The format has none, so castoff makes one from config and layers; it can be asked for."""
    first = await resolved(f"docker-archive:{write_docker_archive(tmp_path / 'a.tar', {'a:1': image})}", tmp_path)
    second = await resolved(f"docker-archive:{write_docker_archive(tmp_path / 'b.tar', {'b:2': image})}", tmp_path)
    assert first.digest == second.digest
    assert (await resolved(f"docker-archive:{tmp_path / 'a.tar'}@{first.digest}", tmp_path)).digest == first.digest
    with pytest.raises(NotFound, match=str(first.digest)):
        await resolved(f"docker-archive:{tmp_path / 'a.tar'}@{Digest.of(b'')}", tmp_path)


def docker_tar(
    path: Path, image: BuiltImage, layer: tarfile.TarInfo | None, data: bytes, layers: str = '["l/layer.tar"]'
) -> Path:
    """A docker archive with one member for its only layer."""
    members = [("c.json", image.config.data), ("manifest.json", f'[{{"Config":"c.json","Layers":{layers}}}]'.encode())]
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if layer is not None:
            layer.size = len(data) if layer.isreg() else 0
            tar.addfile(layer, io.BytesIO(data))
    return path


def links(path: Path, image: BuiltImage, kind: bytes, target: str) -> Path:
    """An archive whose layer is a link to ``real/layer.tar``, as old Docker wrote for layers that images share."""
    docker_tar(path, image, tarfile.TarInfo("real/layer.tar"), image.tars[0])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("l/layer.tar")
        link.type, link.linkname = kind, target
        tar.addfile(link)
    return path


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "../real/layer.tar"),
        (tarfile.SYMTYPE, "/real/layer.tar"),
        (tarfile.SYMTYPE, "../../../real/layer.tar"),
        (tarfile.LNKTYPE, "real/layer.tar"),
        (tarfile.LNKTYPE, "./real/layer.tar"),
    ],
)
async def test_layers_that_are_links_to_others(tmp_path: Path, kind: bytes, target: str) -> None:
    """Within the archive, whose top is the root of all names."""
    image = build_image([LayerTar().file("x", b"y" * 10000)])
    path = links(tmp_path / "a.tar", image, kind, target)
    await check_image_source(lambda: opened(f"docker-archive:{path}", tmp_path), AMD64, image.tars)


@pytest.mark.parametrize(("target", "kind"), [("/etc/passwd", NotFound), ("layer.tar", Invalid), ("../nowhere", NotFound)])
async def test_links_that_lead_nowhere_or_in_circles(tmp_path: Path, target: str, kind: type[CastoffError]) -> None:
    """No file of the host is ever meant."""
    image = build_image([LayerTar().file("x")])
    with pytest.raises(kind):
        await resolved(f"docker-archive:{links(tmp_path / 'a.tar', image, tarfile.SYMTYPE, target)}", tmp_path)


async def test_docker_archives_with_compressed_layers(tmp_path: Path) -> None:
    """Other tools compress layers; names under blobs/sha256 tell their digest, others are hashed."""
    image = build_image([LayerTar().file("x", os.urandom(100_000))])
    blob = image.layers[0]
    path = docker_tar(tmp_path / "a.tar", image, tarfile.TarInfo("l/layer.tar"), blob.data)
    await check_image_source(lambda: opened(f"docker-archive:{path}", tmp_path), AMD64, [blob.data])
    name = f"blobs/sha256/{blob.digest.removeprefix('sha256:')}"
    path = docker_tar(tmp_path / "b.tar", image, tarfile.TarInfo(name), blob.data, f'["{name}"]')
    await check_image_source(lambda: opened(f"docker-archive:{path}", tmp_path), AMD64, [blob.data])


@pytest.mark.parametrize(
    ("layers", "word"),
    [
        ('["l/layer.tar","l/layer.tar"]', "2 layers and its config 1"),
        ("null", "0 layers"),
        ('["no"]', "missing"),
        ("5", "cannot be read"),
    ],
)
async def test_broken_docker_archives(tmp_path: Path, layers: str, word: str) -> None:
    """One clear line."""
    image = build_image([LayerTar().file("x")])
    path = docker_tar(tmp_path / "a.tar", image, tarfile.TarInfo("l/layer.tar"), image.tars[0], layers)
    with pytest.raises(CastoffError, match=word):
        await resolved(f"docker-archive:{path}", tmp_path)


async def test_the_kinds_of_archive_are_not_mistaken_for_each_other(tmp_path: Path, image: BuiltImage) -> None:
    """The hint names the right one."""
    oci = write_oci_archive(tmp_path / "o.tar", {"v1": image})
    docker = write_docker_archive(tmp_path / "d.tar", {"a:1": image})
    with pytest.raises(NotFound, match="oci-archive:"):
        await resolved(f"docker-archive:{oci}", tmp_path)
    with pytest.raises(NotFound, match="docker-archive:"):
        await resolved(f"oci-archive:{docker}", tmp_path)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
async def test_long_names_in_every_tar_format(tmp_path: Path, format: int) -> None:
    """pax paths, GNU long names and ustar prefixes."""
    image = build_image([LayerTar().file("x", b"1")])
    name = "/".join(["d" * 60] * 3 if format != tarfile.USTAR_FORMAT else ["d" * 60] * 2) + "/layer.tar"
    members = {
        "./c.json": image.config.data,
        "manifest.json": f'[{{"Config":"c.json","Layers":["{name}"]}}]'.encode(),
        name: image.tars[0],
    }
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    await check_image_source(lambda: opened(f"docker-archive:{tmp_path / 'a.tar'}", tmp_path), AMD64, image.tars)


def header(**changes: bytes) -> bytes:
    """A tar header whose fields are replaced, with a right checksum."""
    info = tarfile.TarInfo("index.json")
    data = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    places = {"size": (124, 12), "kind": (156, 1), "name": (0, 100)}
    for field, value in changes.items():
        start, length = places[field]
        data[start : start + length] = value.ljust(length, b"\0")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"not a tar at all" * 100, "not a tar"),
        (bytes(2000), "empty"),
        (header(size=b"77777777777"), "truncated"),
        (header(size=b"\x80" + b"\xff" * 11), "truncated"),
        (header(size=b"\xff" * 12), "no readable size"),
        (header(size=b"99"), "no readable size"),
        (header(kind=b"S"), "sparse"),
        (header(kind=b"x", size=b"77777777"), "extended header"),
        (header(kind=b"L", size=b"7777"), "truncated"),
        (header(kind=b"x", size=b"10") + b"99 path=a".ljust(512, b"\0"), "pax header"),
        (header(kind=b"x", size=b"14") + b"12 size=-5x\n".ljust(512, b"\0") + header(), "pax header"),
        (b"\x1f\x8b\x08" + bytes(100), "cannot be decompressed"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "cannot be decompressed"),
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
    ],
)
async def test_archives_that_are_none(tmp_path: Path, data: bytes, word: str) -> None:
    """Broken headers, absurd sizes and other formats are refused before anything is read by them."""
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(CastoffError, match=word) as caught:
        await resolved(f"oci-archive:{tmp_path / 'a.tar'}", tmp_path)
    assert "a.tar" in str(caught.value)
    assert isinstance(caught.value, Invalid | Unsupported)


async def test_an_archive_that_decompresses_without_end(tmp_path: Path) -> None:
    """Stops at the limit, keeps nothing."""
    bomb = LayerTar().file("zeros", bytes(8 << 20)).bytes()
    (tmp_path / "a.tgz").write_bytes(gzip.compress(bomb))
    with pytest.raises(LimitExceeded, match="max_archive_size"):
        await resolved(f"oci-archive:{tmp_path / 'a.tgz'}", tmp_path, max_archive_size=1 << 20)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.tgz"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 70 MiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


async def test_a_full_disk_is_foreseen(tmp_path: Path, tiny_disk: Path) -> None:
    """The spool leaves 64 MiB free, and says what it needed."""
    data = LayerTar().file("zeros", bytes(20 << 20)).bytes()
    (tmp_path / "a.tgz").write_bytes(gzip.compress(data))
    with pytest.raises(NoSpace, match="needs"):
        await resolved(f"oci-archive:{tmp_path / 'a.tgz'}", tiny_disk)
    assert list(tiny_disk.iterdir()) == []


async def test_too_many_members(tmp_path: Path) -> None:
    """An archive of a hundred thousand members is no image."""
    (tmp_path / "a.tar").write_bytes(header() * 100_001)
    with pytest.raises(Invalid, match="100000 members"):
        await resolved(f"oci-archive:{tmp_path / 'a.tar'}", tmp_path)


async def test_too_many_bytes_of_names(tmp_path: Path) -> None:
    """Names are held in memory: an archive that compresses well could hold any number of them."""
    name = b"n" * (1 << 20)
    long = header(kind=b"L", size=b"%011o" % len(name)) + name + header()
    (tmp_path / "a.tar").write_bytes(long * 33)
    with pytest.raises(Invalid, match="32 MiB of names"):
        await resolved(f"oci-archive:{tmp_path / 'a.tar'}", tmp_path)
