"""What the kernel and e2fsck make of composed filesystems: of any size and shape, written to, torn away, and recovered."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from castoff.errors import NoSpace
from castoff.ext4.check.filesystem import check
from castoff.ext4.compose import Composition, compose, minimum_size
from castoff.ext4.tables import compile_tables
from castoff.image.digest import Digest
from castoff.layers.toc import BLOCK, CHUNK, Kind
from ext4_images import compose_rows, fsck
from ext4_toc import Row, build_toc
from ext4_trees import mounted

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


@pytest.fixture
def rootfs(daemon_directory: Path) -> Path:
    """Where an image may be written."""
    path = daemon_directory / "kernel.ext4"
    path.unlink(missing_ok=True)
    return path


SMALL = [Row(b"etc/motd", contents=b"hello\n", mode=0o644), Row(b"data", contents=b"d" * 3 * MIB)]


def at_size(path: Path, size: int) -> Composition:
    path.unlink(missing_ok=True)
    composition = compose_rows(path, [SMALL], size=size)
    assert composition.size == path.stat().st_size == size
    return composition


def small_minimum() -> int:
    return minimum_size([(Digest.of(b"\0"), compile_tables(build_toc(SMALL)[0]))])


@pytest.mark.parametrize("more", [0, 1, BLOCK, 5 * MIB, 120 * MIB, 121 * MIB])
def test_every_size_from_the_least_on_is_sound(rootfs: Path, more: int) -> None:
    """The least size, one byte more, and around the end of the first group."""
    at_size(rootfs, small_minimum() + more)
    assert fsck(rootfs) == ""
    assert check(rootfs) == []
    with mounted(rootfs, options="rw") as mount:
        assert (mount / "etc/motd").read_bytes() == b"hello\n"
        (mount / "etc/motd").write_bytes(b"written\n")
    assert fsck(rootfs) == ""


@pytest.mark.parametrize("size", [128 * MIB, 128 * MIB + BLOCK, 256 * MIB - BLOCK, 2 * GIB, 100 * GIB + BLOCK, 2 * TIB])
def test_every_usual_size_is_sound(rootfs: Path, size: int) -> None:
    """Group boundaries, and disks as machines have them."""
    at_size(rootfs, size)
    assert fsck(rootfs) == ""
    if size < GIB:
        assert check(rootfs) == []
    with mounted(rootfs, options="rw") as mount:
        (mount / "new").write_bytes(b"n" * MIB)
    assert fsck(rootfs) == ""


def test_the_largest_filesystem_there_is(scratch_xfs: Path) -> None:
    """16 TiB, which ext4 itself could not hold as a file: metadata only is written, the kernel mounts it and writes."""
    path = scratch_xfs / "large"
    composition = at_size(path, 16 * TIB)
    assert path.stat().st_blocks * 512 < 64 * MIB
    assert composition.metadata_bytes < 32 * MIB
    with mounted(path, options="rw") as mount:
        assert (mount / "etc/motd").read_bytes() == b"hello\n"
        (mount / "far").write_bytes(b"f" * MIB)
        status = os.statvfs(mount)
        assert status.f_blocks * status.f_frsize > 15.9 * TIB
    assert fsck(path) == ""


def test_a_size_that_is_too_small_is_refused_with_the_figure(rootfs: Path) -> None:
    """One block less than the least."""
    with pytest.raises(NoSpace) as caught:
        compose_rows(rootfs, [SMALL], size=small_minimum() - BLOCK)
    assert caught.value.needed == small_minimum()


@pytest.mark.parametrize("size", [None, 8 * MIB, 64 * GIB])
def test_no_layers_make_an_empty_filesystem(rootfs: Path, size: int | None) -> None:
    """With lost+found alone, and writable: an overlay's upper drive."""
    compose_rows(rootfs, [], size=size)
    assert fsck(rootfs) == ""
    assert check(rootfs) == [] or size == 64 * GIB
    with mounted(rootfs, options="rw") as mount:
        assert [path.name for path in mount.iterdir()] == ["lost+found"]
        (mount / "upper").mkdir()
    assert fsck(rootfs) == ""


def test_large_directories_have_an_index_of_two_levels(rootfs: Path) -> None:
    """200,000 names in one, some of them not ASCII; more can be made and all be found and removed."""
    names = [b"%06d-%s" % (number, b"\xc3\xa9\xff" if number % 3 else b"plain") for number in range(200_000)]
    compose_rows(rootfs, [[Row(b"many/" + name) for name in names]])
    assert fsck(rootfs) == ""
    with mounted(rootfs, options="rw") as mount:
        found = {os.fsencode(entry.name) for entry in os.scandir(mount / "many")}
        assert found == set(names)
        base = os.fsencode(mount / "many") + b"/"
        for name in random.Random(1).sample(names, 2000):
            os.lstat(base + name)
            os.unlink(base + name)  # noqa: PTH108  -- bytes
        for number in range(5000):
            os.close(os.open(base + b"new%d" % number, os.O_CREAT | os.O_EXCL))
    assert fsck(rootfs) == ""


def test_directories_of_more_than_65000_directories_have_one_link(rootfs: Path) -> None:
    """dir_nlink: the count stops counting, and the kernel takes one more and one away."""
    compose_rows(rootfs, [[Row(b"many/%d" % number, Kind.DIRECTORY, mode=0o755) for number in range(65_010)]], size=2 * GIB)
    assert fsck(rootfs) == ""
    with mounted(rootfs, options="rw") as mount:
        assert (mount / "many").stat().st_nlink == 1
        (mount / "many/one more").mkdir()
        (mount / "many/7").rmdir()
    assert fsck(rootfs) == ""


@pytest.mark.parametrize("extents", [4, 5, 340, 341, 1500, 3000])
def test_sparse_files_have_trees_of_extents(rootfs: Path, extents: int) -> None:
    """In the inode, in one block, in several, and in two levels of them; holes read as zeros."""
    blocks = 2 * extents
    contents = b"".join(b"%04095d\n" % number for number in range(blocks))
    row = Row(b"sparse", contents=contents, holes=frozenset(range(1, blocks, 2)), size=blocks * BLOCK + 10)
    compose_rows(rootfs, [[row, Row(b"after", contents=b"a")]])
    assert fsck(rootfs) == ""
    assert check(rootfs) == []
    with mounted(rootfs, options="rw") as mount:
        with (mount / "sparse").open("r+b") as file:
            for number in range(blocks):
                assert file.read(BLOCK) == (bytes(BLOCK) if number % 2 else contents[number * BLOCK : (number + 1) * BLOCK])
            assert file.read() == bytes(10)
            # The kernel leaves a deeper tree wider than e2fsck would have it when it changes it: no matter of ours.
            if extents <= 341:
                os.pwrite(file.fileno(), b"in a hole", BLOCK)
                os.ftruncate(file.fileno(), (blocks - 3) * BLOCK)
        assert (mount / "after").read_bytes() == b"a"
    assert fsck(rootfs) == ""


def test_files_over_512_mib_have_extents_in_blocks(rootfs: Path) -> None:
    """One run of blocks is several extents of 128 MiB each; 700 MiB of holes are enough to see it."""
    toc, _ = build_toc([Row(b"large", contents=b"x")])
    blocks = 700 * MIB // BLOCK
    toc.size[0] = 700 * MIB - 5
    toc.extent_blocks[0] = blocks
    object.__setattr__(toc, "segment_size", blocks * BLOCK)
    composition = compose([(Digest.of(b"large"), compile_tables(toc))], size=GIB)
    with rootfs.open("xb") as file:
        composition.write(file.fileno())
        os.pwrite(file.fileno(), b"end", composition.placements[0].offset + 700 * MIB - 8)
    assert fsck(rootfs) == ""
    with mounted(rootfs) as mount, (mount / "large").open("rb") as file:
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"\0end"


def test_the_kernel_writes_nothing_of_its_own(rootfs: Path) -> None:
    """Mounted and idle, with lazy initialisation urged on: next to nothing is written."""
    at_size(rootfs, 8 * GIB)
    allocated = rootfs.stat().st_blocks
    with mounted(rootfs, options="rw,init_itable=0") as mount:
        device = subprocess.run(["findmnt", "-no", "SOURCE", str(mount)], capture_output=True, text=True, check=True).stdout
        statistics = Path("/sys/block", Path(device.strip()).name, "stat")
        before = int(statistics.read_text().split()[6])
        time.sleep(2)
        os.sync()
        assert (int(statistics.read_text().split()[6]) - before) * 512 <= 64 * 1024
    assert rootfs.stat().st_blocks <= allocated + 32


def busy(directory: Path, seed: int) -> None:
    """Creates, writes, renames, truncates, punches and removes, all over a tree."""
    choose = random.Random(seed)
    made = []
    for number in range(3000):
        path = directory / f"d{choose.randrange(20)}" / f"file-{number}-{'n' * choose.randrange(120)}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"w" * choose.randrange(9000))
        made.append(path)
    for path in choose.sample(made, 1500):
        path.rename(path.with_name(path.name + "-moved") if len(path.name) < 200 else path.with_name(path.name[:90]))
    with (directory / "large").open("wb") as file:
        for _ in range(200):
            os.pwrite(file.fileno(), b"l" * 70000, choose.randrange(64 * MIB))
        os.ftruncate(file.fileno(), 30 * MIB)
    subprocess.run(["fallocate", "-p", "-o", "1M", "-l", "5M", str(directory / "large")], check=True)
    shutil.rmtree(directory / "d3")


def lived_in() -> list[list[Row]]:
    rows = [Row(b"d%d/%05d-%s" % (number % 20, number, b"x" * 90), contents=b"c" * (number % 7000)) for number in range(4000)]
    rows += [
        Row(b"attributes", attributes=((b"user.a", b"v" * 300),)),
        Row(b"attributes2", attributes=((b"user.a", b"v" * 300),)),
    ]
    return [rows, [Row(b"d5/00005-" + b"x" * 90, Kind.WHITEOUT), Row(b"d6", Kind.OPAQUE), Row(b"d6/only", contents=b"6")]]


def test_a_filesystem_that_was_lived_in_is_still_sound(rootfs: Path) -> None:
    """Thousands of changes in composed and new directories, discards, a second mount."""
    compose_rows(rootfs, lived_in(), size=GIB)
    assert fsck(rootfs) == ""
    for seed in range(2):
        with mounted(rootfs, options="rw,discard") as mount:
            busy(mount if seed else mount / "d1", seed)
            os.setxattr(mount / "attributes", "user.more", b"m" * 100)
            subprocess.run(["fstrim", str(mount)], check=True)
        assert fsck(rootfs) == ""


def test_the_kernel_reads_large_attribute_values_and_goes_on_with_them(rootfs: Path) -> None:
    """Values of up to 64 KiB, shared within a layer, across layers and by 1,500 files; replaced, removed and added to."""
    largest, other = bytes(range(256)) * 256, b"o" * 5001
    many = ((b"user.largest", largest), (b"user.b", b"b" * 100))
    lower = [Row(b"shared/%04d" % number, attributes=many) for number in range(1500)]
    lower += [
        Row(b"one", attributes=((b"user.other", other), (b"trusted.same", other), (b"security.small", b"s"))),
        Row(b"d", Kind.DIRECTORY, attributes=tuple((b"user.%03d" % number, b"%03d" % number * 700) for number in range(100))),
        Row(b"gone", attributes=((b"user.gone", b"g" * 9000),)),
    ]
    upper = [Row(b"two", attributes=((b"user.two", other), (b"user.x", largest))), Row(b"gone", Kind.WHITEOUT)]
    compose_rows(rootfs, [lower, upper], size=GIB)
    assert check(rootfs) == []
    assert fsck(rootfs) == ""
    with mounted(rootfs) as mount:
        for number in (0, 1023, 1024, 1499):
            assert os.getxattr(mount / "shared" / f"{number:04}", "user.largest") == largest
        assert {name: os.getxattr(mount / "one", name) for name in ("user.other", "trusted.same", "security.small")} == {
            "user.other": other, "trusted.same": other, "security.small": b"s",
        }  # fmt: skip
        assert os.getxattr(mount / "two", "user.two") == other
        assert os.getxattr(mount / "two", "user.x") == largest
        for number in range(100):
            assert os.getxattr(mount / "d", f"user.{number:03}") == b"%03d" % number * 700
    with mounted(rootfs, options="rw") as mount:
        for number in range(0, 1500, 3):
            (mount / "shared" / f"{number:04}").unlink()
        os.setxattr(mount / "shared" / "0001", "user.largest", largest[::-1])
        os.setxattr(mount / "shared" / "0002", "user.more", other)
        os.removexattr(mount / "one", "user.other")
        os.removexattr(mount / "two", "user.x")
        (mount / "d").rmdir()
    assert fsck(rootfs) == ""
    with mounted(rootfs) as mount:
        assert os.getxattr(mount / "shared" / "0001", "user.largest") == largest[::-1]
        assert os.getxattr(mount / "shared" / "0004", "user.largest") == largest
        assert os.getxattr(mount / "shared" / "0002", "user.more") == other
        assert os.getxattr(mount / "one", "trusted.same") == other


def test_a_filesystem_torn_away_in_mid_write_recovers(rootfs: Path) -> None:
    """A copy taken while it is written to: the journal is replayed, and all is sound."""
    compose_rows(rootfs, lived_in(), size=512 * MIB)
    copy = rootfs.with_name("torn.ext4")
    with mounted(rootfs, options="rw,commit=1") as mount:
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(mount)])
        try:
            time.sleep(2.5)
            # The frozen filesystem's journal is empty; a copy of the device's cache in mid-flight is not.
            subprocess.run(["cp", "--sparse=always", str(rootfs), str(copy)], check=True)
        finally:
            writer.kill()
            writer.wait()
    header = subprocess.run(["dumpe2fs", "-h", str(copy)], capture_output=True, text=True, check=True).stdout
    assert "needs_recovery" in header
    with mounted(copy, options="rw") as mount:
        assert (mount / "d6/only").read_bytes() == b"6"
    assert fsck(copy) == ""
    copy.unlink()


_WRITER = """
import os, sys
for number in range(10**9):
    directory = f"{sys.argv[1]}/w{number % 50}"
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/{number}", "wb") as file:
        file.write(b"t" * (number % 5000))
        if number % 100 == 0:
            os.fsync(file.fileno())
    if number % 3 == 0:
        os.unlink(f"{directory}/{number}")
"""


def test_segments_stand_on_chunks_and_tell_which_are_live() -> None:
    """A replaced file's chunks are live no more; the first layer's segment is placed all the same."""
    first = [Row(b"a", contents=b"a" * 2 * CHUNK), Row(b"b", contents=b"b" * CHUNK), Row(b"c", contents=b"c")]
    stack = [build_toc(first)[0], build_toc([Row(b"b", contents=b"new"), Row(b"c", Kind.WHITEOUT)])[0]]
    composition = compose([(Digest.of(bytes([number])), compile_tables(toc)) for number, toc in enumerate(stack)])
    assert [placement.offset % CHUNK for placement in composition.placements] == [0, 0]
    assert [placement.length for placement in composition.placements] == [3 * CHUNK + BLOCK, BLOCK]
    assert composition.live_chunks(0).tolist() == [True, True, False, False]
    assert composition.live_chunks(1).tolist() == [True]
