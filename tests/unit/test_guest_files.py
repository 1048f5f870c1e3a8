"""The guest init's own archiver (guest/files_send.c, files_take.c), compiled as a program of this host."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

GUEST = Path(__file__).parents[2] / "guest"
MAIN = """
#include "init.h"
uint8_t *read_file(const char *path, size_t limit, size_t *size) { return (void)path, (void)limit, (void)size, NULL; }
void statistics_send(char **paths) { (void)paths; }
int main(int argc, char **argv) { return (void)argc, task_perform(argv + 1), 0; }
"""
OK, FAILED, NOT_FOUND, UNKNOWN = 0, 1, 2, 127

Task = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(name="task", scope="module")
def _task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Performs a task as init's child does."""
    directory = tmp_path_factory.mktemp("guest")
    (directory / "main.c").write_text(MAIN)
    compiler = shlex.split(os.environ.get("CASTOFF_INIT_CC", "musl-gcc"))
    flags = ("-std=c11", "-D_GNU_SOURCE", "-O1", "-static", "-Wall", "-Wextra", "-Werror", f"-I{GUEST}")
    sources = [
        str(directory / "main.c"),
        *(str(GUEST / f"{name}.c") for name in ("tasks", "files_send", "files_take", "volumes")),
    ]
    subprocess.run([*compiler, *flags, "-o", str(directory / "task"), *sources], check=True)

    def perform(*words: str | Path, archive: bytes = b"", code: int = OK) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run([directory / "task", *words], input=archive, capture_output=True, check=False, timeout=20)
        assert done.returncode == code, done.stderr
        return done

    return perform


@pytest.fixture(name="source")
def _source(tmp_path: Path) -> Path:
    """A directory with all that there may be."""
    source = tmp_path / "source"
    (source / "below" / "deep").mkdir(parents=True)
    (source / "below" / "binary").write_bytes(os.urandom(200_001))
    (source / "below" / "program").write_bytes(b"#!")
    (source / "below" / "program").chmod(0o4751)
    (source / ("n" * 180)).write_bytes(b"long")
    (source / os.fsdecode(b"\xff")).write_bytes(b"odd")
    (source / "absolute").symlink_to("/" + "t" * 150)
    (source / "below" / "old").touch()
    os.utime(source / "below" / "old", (-1, -1))
    os.chown(source / "below" / "old", 3_000_000, 123)
    return source


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


def tree(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Names with modes, owners and contents."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        data = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = (status.st_mode, status.st_uid, status.st_gid, data)
    return found


def test_it_reads_what_it_writes(task: Task, source: Path, tmp_path: Path) -> None:
    """Modes, owners, times, links, names of any bytes and length; into a directory, and under another name."""
    archive = task("send-files", source).stdout
    (tmp_path / "into").mkdir()
    task("take-files", tmp_path / "into", archive=archive)
    task("take-files", tmp_path / "other", archive=archive)
    assert tree(tmp_path / "into" / "source") == tree(tmp_path / "other") == tree(source)
    assert (tmp_path / "other" / "below" / "old").stat().st_mtime == -1
    task("take-files", tmp_path / "inside", archive=task("send-files", f"{source}/.").stdout)
    assert tree(tmp_path / "inside") == tree(source)


def test_other_programs_read_what_it_writes(task: Task, source: Path) -> None:
    """Python's tarfile; pipes and devices are in it, sockets are not."""
    os.mkfifo(source / "pipe")
    os.mknod(source / "null", 0o020666, os.makedev(1, 3))
    with tarfile.open(fileobj=io.BytesIO(task("send-files", source).stdout)) as opened:
        members = {member.name: member for member in opened}
    assert members.keys() == {str(path.relative_to(source.parent)) for path in [source, *source.rglob("*")]}
    assert members["source/null"].ischr() and members["source/null"].devminor == 3 and members["source/pipe"].isfifo()
    assert members["source/below/old"].uid == 3_000_000 and members["source/below/old"].mtime == -1
    assert members["source/absolute"].linkname == "/" + "t" * 150


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_it_reads_what_other_programs_write(task: Task, source: Path, tmp_path: Path, kind: int) -> None:
    """In each of the formats that there are; hard links too."""
    (source / ("n" * 180)).unlink()
    (source / "absolute").unlink()
    os.chown(source / "below" / "old", 1, 1)
    os.utime(source / "below" / "old", (1, 1))
    if kind == tarfile.USTAR_FORMAT:
        (source / os.fsdecode(b"\xff")).unlink()
    else:
        (source / "below" / ("é" * 90)).write_bytes(b"long")
    (source / "second").hardlink_to(source / "below" / "binary")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=kind, errors="surrogateescape") as opened:
        opened.add(source, "source")
    task("take-files", tmp_path / "taken", archive=made.getvalue())
    assert tree(tmp_path / "taken") == tree(source)
    assert (tmp_path / "taken" / "second").stat().st_nlink == 2


def entry(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """An entry of an archive."""
    header = tarfile.TarInfo(name)
    header.size, header.type, header.linkname = len(data), kind, link
    return header.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


END = bytes(1024)


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (entry("a/../../out", b"x") + END, "leads out"),
        (entry("a", kind=tarfile.CHRTYPE) + END, "only files"),
        (entry("x", b"12 path\n", kind=tarfile.XHDTYPE) + END, "broken"),
        (entry("x", b"99 path=a\n", kind=tarfile.XHDTYPE) + END, "broken"),
        (entry("x", b"24 GNU.sparse.major=1\n\n\n", kind=tarfile.XHDTYPE) + END, "sparse"),
        (entry("x", b"x" * 70_000, kind=tarfile.GNUTYPE_LONGNAME) + END, "too long"),
        (entry("x", b"x" * 5000, kind=tarfile.GNUTYPE_LONGNAME) + entry("a") + END, "too long"),
        (entry("a", b"x" * 5000)[:3000], "cut short"),
        (entry("a", b"whole"), "cut short"),
        (b"nothing of the kind" * 100, "no tar archive"),
        (b"", "cut short"),
    ],
)
def test_broken_archives(task: Task, tmp_path: Path, archive: bytes, reason: str) -> None:
    """Refused with the reason; what is not whole is not there."""
    (tmp_path / "into").mkdir()
    assert reason in task("take-files", tmp_path / "into", archive=archive, code=FAILED).stderr.decode()
    assert names(tmp_path) == ["into"] and set(names(tmp_path / "into")) <= ({"a"} if b"whole" in archive else set())


def test_what_is_not_there(task: Task, tmp_path: Path) -> None:
    """Has a code of its own; so has a task that init does not know."""
    assert b"No such file" in task("send-files", tmp_path / "nothing", code=NOT_FOUND).stderr
    task("take-files", tmp_path / "no" / "x", archive=entry("a", b"x") + END, code=NOT_FOUND)
    task("take-files", f"{tmp_path}/no/", archive=entry("a", b"x") + END, code=NOT_FOUND)
    task("take-files", tmp_path / "new", archive=entry("a", b"x") + entry("b", b"x") + END, code=NOT_FOUND)
    task("send-files", "relative", code=FAILED)
    task("send-files", f"{tmp_path}/..", code=FAILED)
    task("dance", "/", code=UNKNOWN)
    task("send-files", code=UNKNOWN)


def test_files_that_are_there_are_replaced(task: Task, tmp_path: Path) -> None:
    """Never through a link; a directory is not replaced by a file."""
    (tmp_path / "real").write_bytes(b"stays")
    (tmp_path / "a").symlink_to(tmp_path / "real")
    (tmp_path / "d").mkdir()
    task("take-files", tmp_path, archive=entry("a", b"new") + END)
    assert (tmp_path / "a").read_bytes() == b"new" and (tmp_path / "real").read_bytes() == b"stays"
    assert b"irectory" in task("take-files", tmp_path, archive=entry("d", b"x") + END, code=FAILED).stderr
    assert names(tmp_path) == ["a", "d", "real"]
