"""One layer in one pass: compressions, checks, limits, failures, cancellation, and the files that are left."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import zstandard

from castoff import timeline
from castoff.errors import DigestMismatch, Invalid, LimitExceeded, NoSpace, Unavailable, Unsupported
from castoff.image.digest import Digest
from castoff.image.image import Layer
from castoff.layers.convert import convert
from castoff.layers.settings import Limits
from castoff.layers.toc import CHUNK
from castoff.layers.verify import verify_segment
from layer_reader import convert_bytes, layer_of, pieces, read_rows
from oci_builder import LayerTar


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Whatever happens to a conversion, its threads are gone after it."""
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("layer")] == []


@pytest.fixture(scope="module")
def tar() -> bytes:
    """A few MiB: small and large files, compressible and not, zeros."""
    rng = random.Random(7)
    layer = LayerTar()
    for number in range(300):
        layer.file(f"d{number % 7}/f{number}", rng.randbytes(rng.choice((0, 10, 5000, 20_000))), mtime=number * 1000)
    layer.file("big", rng.randbytes(3 * CHUNK + 5)).file("zeros", bytes(5 * CHUNK + 1)).file("text", b"castoff " * 100_000)
    return layer.symlink("l", "big").bytes()


def zstd(data: bytes, **options: int) -> bytes:
    """One frame."""
    return zstandard.ZstdCompressor(**options).compress(data)


def blobs(tar: bytes) -> dict[str, bytes]:
    """The tar as registries have it."""
    third = len(tar) // 3
    parts = (tar[:third], tar[third : 2 * third], tar[2 * third :])
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    return {
        "plain": tar,
        "gzip": gzip.compress(tar, 6),
        "gzip members": b"".join(gzip.compress(part, 1) for part in parts) + gzip.compress(b""),
        "gzip stored, padded": gzip.compress(tar, 0) + bytes(100),
        "zstd": zstd(tar),
        "zstd frames": b"".join(zstd(part, level=level) for level, part in zip((1, 3, 19), parts, strict=True)),
        "zstd skippable": skippable + zstd(tar) + skippable,
        "zstd without size": zstandard.ZstdCompressor(write_content_size=False).compress(tar),
    }


async def test_every_compression_and_piece_size_gives_the_same_files(tmp_path: Path, tar: bytes) -> None:
    """Segment and index depend on the uncompressed tar alone."""
    seen: set[tuple[str, str]] = set()
    for name, blob in blobs(tar).items():
        for number, sizes in enumerate(((1 << 20,), (65536,), (4097, 1, 511))):
            directory = tmp_path / f"{name}-{number}"
            await convert_bytes(directory, blob, tar, sizes=sizes)
            seen.add(tuple(hashlib.sha256((directory / file).read_bytes()).hexdigest() for file in ("segment", "index")))
            assert verify_segment(directory) == []
    assert len(seen) == 1


async def test_content_is_what_the_tar_has(tmp_path: Path, tar: bytes) -> None:
    """Each file, read through its extents."""
    index = await convert_bytes(tmp_path / "layer", gzip.compress(tar), tar)
    rows = {row.path.decode(): row for row in read_rows(tmp_path / "layer")}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            if member.isreg():
                assert rows[member.name].data == archive.extractfile(member).read()  # type: ignore[union-attr]
    first = rows["zeros"].extents[0][1] * 4096 // CHUNK
    assert index.zero[first : first + 5].all()
    assert not index.zero[:first].any()


async def test_the_timeline_counts_compressed_bytes(tmp_path: Path, tar: bytes) -> None:
    """A progress bar of the step ends at its total."""
    blob = gzip.compress(tar)
    with timeline.recording(timeline.Timeline()) as recorded:
        await convert_bytes(tmp_path / "layer", blob, tar)
    (step,) = recorded.steps
    assert (step.name, step.state, step.total, step.done) == ("layers.convert", "complete", len(blob), len(blob))
    assert step.attributes == {"layer": str(Digest.of(tar))}


async def run(tmp_path: Path, layer: Layer, blob: bytes, limits: Limits | None = None) -> None:
    """Converts into a fresh directory; nothing that looks like a layer may be left by a failure."""
    directory = tmp_path / "layer"
    directory.mkdir()
    try:
        await convert(layer, pieces(blob), directory, limits or Limits())
    finally:
        assert not (directory / "index").exists()


async def test_wrong_digests_and_sizes(tmp_path: Path, tar: bytes) -> None:
    """A blob or a tar that is another than the manifest and the config say is never a layer."""
    blob = gzip.compress(tar)
    good = layer_of(blob, tar)
    other = Digest.of(b"other")
    cases = [
        (Layer(other, good.size, good.media_type, good.diff_id), blob, DigestMismatch, "its blob should be"),
        (Layer(good.digest, good.size, good.media_type, other), blob, DigestMismatch, "its uncompressed tar should be"),
        (Layer(good.digest, good.size + 1, good.media_type, good.diff_id), blob, Invalid, "ended after"),
        (Layer(good.digest, good.size - 1, good.media_type, good.diff_id), blob, Invalid, "longer than"),
        (good, blob[:-5], Invalid, "ended after"),
        (good, blob[: len(blob) // 2], Invalid, "ended after"),
        (good, b"", Invalid, "ended after"),
        (good, blob + bytes(10), Invalid, "longer than"),
        (Layer(good.digest, len(tar), good.media_type, good.digest), tar, DigestMismatch, "its blob should be"),
    ]
    for number, (layer, data, error, text) in enumerate(cases):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(error, match=f"layer {layer.digest}: .*{text}"):
            await run(tmp_path / str(number), layer, data)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "plain"])
async def test_a_broken_transfer_is_told_from_a_broken_image(tmp_path: Path, tar: bytes, kind: str) -> None:
    """One flipped byte anywhere is the transfer's fault (its digest is wrong); the same with the right digest, the image's."""
    blob = blobs(tar)[kind]
    good = layer_of(blob, tar)
    for number, at in enumerate((0, 10, 600, len(blob) // 2, len(blob) - 3)):
        bad = blob[:at] + bytes([blob[at] ^ 0x55]) + blob[at + 1 :]
        for name, layer in (("transfer", good), ("image", Layer(Digest.of(bad), len(bad), good.media_type, good.diff_id))):
            (tmp_path / f"{number}-{name}").mkdir()
            with pytest.raises(Invalid) as caught:
                await run(tmp_path / f"{number}-{name}", layer, bad)
            assert ("its blob should be" in caught.value.what) == (name == "transfer")


async def test_compressed_rubbish(tmp_path: Path, tar: bytes) -> None:
    """Streams that end early or go on as something else, with digests that agree."""
    whole, frame = gzip.compress(tar), zstd(tar)
    cases = {
        "cut gzip": whole[: len(whole) // 2],
        "gzip head only": whole[:10],
        "gzip magic only": whole[:2],
        "gzip, then rubbish": whole + b"rubbish",
        "gzip, wrong crc": whole[:-8] + bytes(4) + whole[-4:],
        "zstd, then rubbish": frame + b"rubbish",
        "zstd magic only": frame[:4],
        "gzip of gzip": gzip.compress(whole),
        "xz": b"\xfd7zXZ\0" + bytes(600),
    }
    for number, (name, blob) in enumerate(cases.items()):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(Invalid, match="layer sha256"):
            await run(tmp_path / str(number), layer_of(blob, tar), blob)
            pytest.fail(name)


async def test_endless_gzip_header(tmp_path: Path) -> None:
    """A file name of megabytes in a gzip header is not gathered in memory."""
    blob = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (5 << 20)
    with pytest.raises(Invalid, match=r"(?i)gzip header"):
        await run(tmp_path, layer_of(blob, b""), blob)


async def test_unknown_media_type(tmp_path: Path, tar: bytes) -> None:
    """Refused before a byte is read."""
    layer = layer_of(tar, tar, media_type="application/vnd.oci.image.layer.v1.tar+encrypted")
    with pytest.raises(Unsupported, match="encrypted"):
        await run(tmp_path, layer, tar)


async def test_bombs(tmp_path: Path) -> None:
    """Limits of size, of the ratio and of zstd's window end a conversion while it runs, and say what raises them."""
    tar = LayerTar().file("f", bytes(64 << 20)).bytes()
    blob = zstd(tar)
    with pytest.raises(LimitExceeded, match=r"max_layer_size"):
        await run(tmp_path, layer_of(blob, tar), blob, Limits(max_layer_size=32 << 20))
    (tmp_path / "window").mkdir()
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compress(tar)
    with pytest.raises(LimitExceeded, match=r"max_window"):
        await run(tmp_path / "window", layer_of(wide, tar), wide, Limits(max_window=64 << 20))
    await convert_bytes(tmp_path / "wide", wide, tar)


async def test_ratio_bomb(tmp_path: Path) -> None:
    """2 GiB out of some hundred KB is a bomb; it is noticed after the first GiB, and took no disk: zeros are holes."""
    blob = b"".join([zstd(LayerTar().file("f", bytes(256 << 20)).bytes()[: (256 << 20) + 512])] * 8)
    with pytest.raises(LimitExceeded, match=r"max_ratio"):
        await run(tmp_path, layer_of(blob, b""), blob)
    assert (tmp_path / "layer" / "segment").stat().st_blocks * 512 < 128 << 20


async def test_failure_of_the_source_comes_through(tmp_path: Path, tar: bytes) -> None:
    """What the registry raised is raised, whole."""

    async def broken() -> AsyncIterator[bytes]:
        yield tar[:100_000]
        raise Unavailable("the registry went away")

    directory = tmp_path / "layer"
    directory.mkdir()
    with pytest.raises(Unavailable, match=r"^the registry went away$"):
        await convert(layer_of(tar, tar), broken(), directory, Limits())
    assert not (directory / "index").exists()


async def test_cancellation_at_any_moment(tmp_path: Path, tar: bytes) -> None:
    """A cancelled conversion ends at once, with all its threads, whatever it waits for."""
    blob = gzip.compress(tar)

    async def slow(pause: float) -> AsyncIterator[bytes]:
        for at in range(0, len(blob), 100_000):
            yield blob[at : at + 100_000]
            await asyncio.sleep(pause)

    rng = random.Random(3)
    for number in range(40):
        directory = tmp_path / str(number)
        directory.mkdir()
        task = asyncio.create_task(convert(layer_of(blob, tar), slow(rng.choice((0, 0.001, 60))), directory, Limits()))
        await asyncio.sleep(rng.uniform(0, 0.08))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("layer")] == []


async def test_stalled_source_does_not_hide_a_failure(tmp_path: Path) -> None:
    """A limit is passed: the error comes although the source would never end."""
    blob = gzip.compress(LayerTar().file("f", os.urandom(4 << 20)).bytes())

    async def stalling() -> AsyncIterator[bytes]:
        yield blob
        await asyncio.sleep(3600)

    directory = tmp_path / "layer"
    directory.mkdir()
    with pytest.raises(LimitExceeded):
        await asyncio.wait_for(convert(layer_of(blob + b"x", b""), stalling(), directory, Limits(max_layer_size=1 << 20)), 10)


async def test_many_at_once_share_memory(tmp_path: Path, tar: bytes) -> None:
    """More conversions than the budget allows wait for their turn; a cancelled one gives its part back."""
    blob = gzip.compress(tar)
    tasks = [
        asyncio.create_task(convert_bytes(tmp_path / str(number), blob, tar, limits=Limits(memory=40 << 20)))
        for number in range(12)
    ]
    await asyncio.sleep(0.02)
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("layer")]) <= 8
    tasks[5].cancel()
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 2
    await convert_bytes(tmp_path / "last", blob, tar, limits=Limits(memory=1))


@pytest.fixture
def full_disk(daemon_directory: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB, which also has no O_DIRECT on older kernels."""
    mount = daemon_directory / "tiny"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)
    mount.rmdir()


async def test_full_disk(full_disk: Path) -> None:
    """One line with the figures, for a blob that cannot fit and for a segment that turns out not to."""
    big = LayerTar().file("f", os.urandom(12 << 20)).bytes()
    small = LayerTar().file("f", b"castoff" * (2 << 20)).bytes()
    for number, (blob, tar) in enumerate(((big, big), (gzip.compress(small), small))):
        directory = full_disk / str(number)
        directory.mkdir()
        with pytest.raises(NoSpace, match=r"needs [0-9.]+ MB and has [0-9.]+ MB"):
            await convert(layer_of(blob, tar), pieces(blob), directory, Limits())
        assert not (directory / "index").exists()
        (directory / "segment").unlink(missing_ok=True)
    ok = LayerTar().file("f", os.urandom(1 << 20)).bytes()
    await convert_bytes(full_disk / "ok", ok)
    assert verify_segment(full_disk / "ok") == []


def extents(path: Path) -> int:
    """Extents of a file, as FIEMAP tells them."""
    out = subprocess.run(["filefrag", path], check=True, capture_output=True, text=True).stdout
    return int(out.rsplit(":", 1)[1].split()[0])


def allocated(directory: Path) -> int:
    """Bytes that all segments below a directory take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in directory.glob("*/segment"))


async def test_segments_lie_in_few_extents(scratch_xfs: Path) -> None:
    """At most one XFS extent for each 64 MiB, with several layers written at once, gaps and zeros in them.

    Meanwhile they take no more than 64 MB over what they take in the end.
    """
    tars = []
    for number in range(3):
        rng = random.Random(number)
        layer = LayerTar()
        for file in range(400):
            layer.file(
                f"f{file}",
                rng.randbytes(rng.choice((100, 5000, CHUNK + 4096, CHUNK // 2))) + bytes(rng.choice((0, 0, 3 * CHUNK))),
            )
        tars.append(layer.bytes())
    work = asyncio.gather(*(convert_bytes(scratch_xfs / str(number), tar) for number, tar in enumerate(tars)))
    most = 0
    while not work.done():
        most = max(most, allocated(scratch_xfs))
        await asyncio.sleep(0.002)
    await work
    assert 0 < most <= allocated(scratch_xfs) + 64_000_000
    for number in range(3):
        path = scratch_xfs / str(number) / "segment"
        assert extents(path) <= -(-path.stat().st_size // (64 << 20)) + 1
        assert path.stat().st_blocks * 512 <= path.stat().st_size + (1 << 20), "what was reserved and not used is given back"
        assert verify_segment(scratch_xfs / str(number)) == []


async def test_long_runs_of_zeros_are_holes(scratch_xfs: Path) -> None:
    """80 MiB of zeros take no disk; a short run does not cost an extent."""
    tar = (
        LayerTar()
        .file("a", b"x" * CHUNK)
        .file("z", bytes(80 << 20))
        .file("b", b"y" * CHUNK)
        .file("s", bytes(4 * CHUNK))
        .file("c", b"c")
        .bytes()
    )
    await convert_bytes(scratch_xfs / "layer", zstd(tar), tar)
    path = scratch_xfs / "layer" / "segment"
    assert path.stat().st_blocks * 512 < 2 << 20
    assert extents(path) <= 2
    assert [row.data[:1] for row in read_rows(scratch_xfs / "layer") if row.data] == [b"x", b"y", b"\0", b"c"]
    assert verify_segment(scratch_xfs / "layer") == []


async def test_verify_finds_every_wrong_chunk(tmp_path: Path, tar: bytes) -> None:
    """One flipped bit in a chunk, a cut file, a file that is too long."""
    await convert_bytes(tmp_path / "layer", tar)
    path = tmp_path / "layer" / "segment"
    size = path.stat().st_size
    with path.open("r+b") as file:
        for chunk in (1, 7):
            file.seek(chunk * CHUNK + 100)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    assert verify_segment(tmp_path / "layer") == [1, 7]
    os.truncate(path, size - 4096)
    assert verify_segment(tmp_path / "layer") == [1, 7, size // CHUNK]
    os.truncate(path, size + 4096)
    assert verify_segment(tmp_path / "layer")


@pytest.mark.parametrize(("kind", "count"), [("large", 6), ("million", 1), ("irregular", 1)])
def test_peak_memory(daemon_directory: Path, kind: str, count: int) -> None:
    """At most 256 MB to convert and compose six layers of 400 MB at once, and one of a million entries, replayed or not."""
    directory = daemon_directory / f"memory-{kind}"
    directory.mkdir()
    command = [sys.executable, Path(__file__).parent.parent / "peak_memory.py", directory, kind, str(count)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    subprocess.run(["rm", "-r", directory], check=True)
    assert peak < 250_000
