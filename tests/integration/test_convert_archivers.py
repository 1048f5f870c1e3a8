"""What GNU tar, bsdtar and Python's tarfile archive of a real tree is what a conversion says of it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from castoff.layers.toc import BLOCK, CHUNK, Kind
from layer_reader import Row, convert_bytes, read_rows

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


@pytest.fixture
def tree(daemon_directory: Path, request: pytest.FixtureRequest) -> Path:
    """A directory with one of everything, on a real filesystem."""
    root = daemon_directory / f"tree-{request.node.name.replace('/', '_')}"
    root.mkdir()
    (root / "empty").touch()
    for name, size in (
        ("one", 1),
        ("block", BLOCK),
        ("tail", BLOCK + 1),
        ("chunk", CHUNK),
        ("big", 3 * CHUNK + 77),
        ("small", 300),
    ):
        (root / name).write_bytes(os.urandom(size))
    (root / "zeros").write_bytes(bytes(2 * CHUNK))
    deep = root / ("d" * 100) / ("e" * 100) / ("f" * 100)
    deep.mkdir(parents=True)
    (deep / ("g" * 200)).write_bytes(b"deep")
    (root / "näme with spaces\n\t").write_bytes(b"odd")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe bytes")).write_bytes(b"not UTF-8")
    (root / "link").symlink_to("one")
    (root / "long-link").symlink_to("x/" * 150)
    os.link(root / "one", root / "hard")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "loop", 0o600 | stat.S_IFBLK, os.makedev(259, 70000))
    for name, mode in (("one", 0o4755), ("block", 0o2711), ("tail", 0o000)):
        (root / name).chmod(mode)
    (root / "d").mkdir(mode=0o700)
    (root / "d").chmod(0o1777)
    os.chown(root / "small", 70000, 3_000_000)
    os.utime(root / "big", ns=(0, 1_600_000_000_123_456_789))
    os.utime(root / "small", ns=(0, -86_400_000_000_000))
    return root


def _sparse(root: Path) -> None:
    """Sparse files: holes first, last, in between; regions that begin and end inside of blocks of theirs; huge; empty."""
    for name, size, regions in (
        ("sparse-middle", 1 << 20, ((300_000, 5000), (700_001, 17))),
        ("sparse-head", 600_000, ((0, 100),)),
        ("sparse-tail", 8 << 20, (((8 << 20) - 10, 10),)),
        ("sparse-many", 40 << 20, tuple((at << 19, 4096) for at in range(70))),
        ("sparse-huge", 5 << 40, ((4 << 40, 10_000),)),
        ("sparse-empty", 3 << 20, ()),
        ("sparse-big", 3 << 20, ((1 << 20, 600_000),)),
    ):
        with (root / name).open("wb") as file:
            file.truncate(size)
            for at, count in regions:
                file.seek(at)
                file.write(os.urandom(count))


def _check(root: Path, rows: list[Row], *, nanoseconds: bool) -> None:
    """Compares every row with the tree, and the tree's names with the rows'."""
    seen: dict[bytes, Row] = {row.path: row for row in rows}
    names = [b"", *(os.fsencode(path.relative_to(root)) for path in root.rglob("*"))]
    assert sorted(seen) == sorted(names)
    assert len(rows) == len(names)
    for path, row in seen.items():
        _compare(root, root / os.fsdecode(path), row, seen, nanoseconds=nanoseconds)


def _compare(root: Path, path: Path, row: Row, seen: dict[bytes, Row], *, nanoseconds: bool) -> None:
    status = path.lstat()
    if row.kind == Kind.HARDLINK:
        target = (root / os.fsdecode(row.link)).lstat()
        assert (target.st_ino, target.st_dev) == (status.st_ino, status.st_dev)
        assert seen[row.link].kind == Kind.FILE
        return
    assert row.kind == _KINDS[stat.S_IFMT(status.st_mode)]
    assert (row.uid, row.gid) == (status.st_uid, status.st_gid)
    assert row.mode == stat.S_IMODE(status.st_mode)
    assert row.mtime == status.st_mtime_ns // 10**9
    assert row.mtime_ns == (status.st_mtime_ns % 10**9 if nanoseconds else 0)
    if row.kind == Kind.SYMLINK:
        assert row.link == os.fsencode(os.readlink(path))  # noqa: PTH115 - Path drops a trailing slash
    elif row.kind in (Kind.CHARACTER, Kind.BLOCK):
        assert row.device == (os.major(status.st_rdev), os.minor(status.st_rdev))
    elif row.kind == Kind.FILE:
        assert row.size == status.st_size
        if row.data is not None:
            assert row.data == path.read_bytes()


async def _convert(tmp_path: Path, tar: bytes) -> list[Row]:
    await convert_bytes(tmp_path / "layer", tar)
    return read_rows(tmp_path / "layer")


@pytest.mark.parametrize("archive_format", ["gnu", "pax", "ustar", "oldgnu"])
async def test_gnu_tar(archive_format: str, tree: Path, tmp_path: Path) -> None:
    """GNU tar's formats carry the whole tree; ustar as far as it goes."""
    if archive_format == "ustar":  # cannot say it
        os.chown(tree / "small", 1, 2)
        os.utime(tree / "small", (0, 0))
        (tree / "long-link").unlink()
        shutil.rmtree(tree / ("d" * 100))
    command = ["tar", f"--format={archive_format}", "--sort=name", "-C", tree, "-c", "."]
    tar = subprocess.run(command, check=True, capture_output=True).stdout
    _check(tree, await _convert(tmp_path, tar), nanoseconds=archive_format == "pax")


@pytest.mark.parametrize("archive_format", ["gnutar", "pax", "restricted"])
async def test_bsdtar(archive_format: str, tree: Path, tmp_path: Path) -> None:
    """libarchive's formats, too. (Its gnutar format keeps whole seconds.)"""
    formats = {"gnutar": "gnutar", "pax": "pax", "restricted": "pax restricted"}
    command = ["bsdtar", "--format", formats[archive_format].replace("pax restricted", "rpax"), "-C", tree, "-c", "."]
    tar = subprocess.run(command, check=True, capture_output=True, env=os.environ | {"LC_ALL": "C.UTF-8"}).stdout
    if archive_format == "gnutar":  # has no times before 1970
        os.utime(tree / "small", (0, 0))
        tar = subprocess.run(command, check=True, capture_output=True, env=os.environ | {"LC_ALL": "C.UTF-8"}).stdout
    if archive_format == "restricted":  # writes pax headers only where ustar cannot say it, so rounds most times
        for path in (tree, *tree.rglob("*")):
            os.utime(path, ns=(0, os.lstat(path).st_mtime_ns // 10**9 * 10**9), follow_symlinks=False)
        tar = subprocess.run(command, check=True, capture_output=True, env=os.environ | {"LC_ALL": "C.UTF-8"}).stdout
    _check(tree, await _convert(tmp_path, tar), nanoseconds=archive_format == "pax")


@pytest.mark.parametrize("archive_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
async def test_python_tarfile(archive_format: int, tree: Path, tmp_path: Path) -> None:
    """What Python's tarfile writes; its times are floats in pax, so whole seconds are compared."""
    for path in (tree, *tree.rglob("*")):
        os.utime(path, ns=(0, os.lstat(path).st_mtime_ns // 10**9 * 10**9), follow_symlinks=False)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=archive_format) as archive:
        archive.add(tree, ".")
    _check(tree, await _convert(tmp_path, buffer.getvalue()), nanoseconds=False)


@pytest.mark.parametrize("variant", ["gnu", "0.0", "0.1", "1.0"])
async def test_gnu_tar_sparse(variant: str, tree: Path, tmp_path: Path) -> None:
    """All four sparse formats give the same files, of which only the data's blocks are in the segment."""
    _sparse(tree)
    form = ["--format=gnu"] if variant == "gnu" else ["--format=pax", f"--sparse-version={variant}"]
    tar = subprocess.run(["tar", *form, "--sparse", "-C", tree, "-c", "."], check=True, capture_output=True).stdout
    rows = await _convert(tmp_path, tar)
    _check(tree, rows, nanoseconds=variant != "gnu")
    huge = next(row for row in rows if row.path == b"sparse-huge")
    assert huge.extents[0][0] == (4 << 40) // BLOCK
    assert sum(count for _, _, count in huge.extents) <= 4
    assert (tmp_path / "layer" / "segment").stat().st_size < 12 << 20


async def test_bsdtar_sparse(tree: Path, tmp_path: Path) -> None:
    """libarchive writes pax sparse format 1.0."""
    _sparse(tree)
    tar = subprocess.run(["bsdtar", "--format", "pax", "-C", tree, "-c", "."], check=True, capture_output=True).stdout
    _check(tree, await _convert(tmp_path, tar), nanoseconds=True)


@pytest.mark.parametrize("archiver", ["tar", "bsdtar"])
async def test_xattrs(archiver: str, tree: Path, tmp_path: Path) -> None:
    """Extended attributes, with binary values and names that libarchive escapes."""
    wanted = {b"user.plain": b"value", b"user.binary": b"\0\x01=\n\xff" * 20, b"user.a%b": b"%", b"user.empty": b""}
    if archiver == "tar":
        wanted.pop(b"user.empty")  # GNU tar leaves it out
    for name, value in wanted.items():
        os.setxattr(tree / "small", name, value)
    os.setxattr(tree / "d", "trusted.overlay.origin", b"x")
    os.setxattr(tree / "one", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    options = ["--xattrs", "--xattrs-include=*"] if archiver == "tar" else ["--xattrs"]
    tar = subprocess.run([archiver, "--format=pax", *options, "-C", tree, "-c", "."], check=True, capture_output=True).stdout
    rows = {row.path: row for row in await _convert(tmp_path, tar)}
    assert rows[b"small"].xattrs == wanted
    assert rows[b"d"].xattrs == {b"trusted.overlay.origin": b"x"}
    held = rows[b"one"] if rows[b"one"].kind == Kind.FILE else rows[b"hard"]
    assert set(held.xattrs) == {b"security.capability"}


async def test_gnu_tar_extraction_of_ourselves(tmp_path: Path) -> None:
    """A tar that lists a file twice keeps both rows in order: the later one wins when layers are applied."""
    (tmp_path / "file").write_bytes(b"1")
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "-C", tmp_path, "-cf", archive, "file"], check=True)
    (tmp_path / "file").write_bytes(b"22")
    subprocess.run(["tar", "-C", tmp_path, "-rf", archive, "file"], check=True)
    rows = await _convert(tmp_path, archive.read_bytes())
    assert [row.data for row in rows] == [b"1", b"22"]
