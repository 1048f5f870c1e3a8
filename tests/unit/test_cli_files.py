"""Files between this host and a machine: what is sent is what is received, and a hostile machine writes nowhere else."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castoff.cli.files_in import Receiver
from castoff.cli.files_out import archive_of, size_of, top_name
from castoff.errors import CastoffError, Invalid, NotFound


def received(target: Path, archive: bytes, *, source: str = "/srv/top", piece: int = 700) -> list[str]:
    """Takes an archive in pieces; what was left out."""
    left: list[str] = []
    with Receiver(
        target,
        source,
        announce=lambda size: None,
        advance=lambda size: None,
        left_out=lambda name, why: left.append(f"{name}: {why}"),
    ) as receiver:
        for at in range(0, len(archive), piece):
            receiver.feed(archive[at : at + piece])
        receiver.finish()
    return left


def entry(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> bytes:
    """An entry of an archive."""
    header = tarfile.TarInfo(name)
    header.size, header.type, header.linkname, header.mode = len(data), kind, link, mode
    return header.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


END = bytes(1024)


async def sent(path: Path, left_out: Callable[[str], None] = lambda name: None) -> bytes:
    """The archive of a path."""
    return b"".join(
        [piece async for piece in archive_of(path, top_name(str(path)), advance=lambda size: None, left_out=left_out)]
    )


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


def tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Names with modes and contents."""
    found = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        data = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = (status.st_mode, data)
    return found


async def test_what_is_sent_is_received(tmp_path: Path) -> None:
    """Any bytes, long names, names that are no text, links, modes, times; pipes are named."""
    source, target = tmp_path / "top", tmp_path / "target"
    (source / "below" / ("n" * 150)).mkdir(parents=True)
    (source / "below" / "binary").write_bytes(os.urandom(100_001))
    (source / "below" / "program").touch(0o751)
    os.utime(source / "below" / "program", (-86400 * 4000, -86400 * 4000))
    (source / "link").symlink_to("below/binary")
    (source / "below" / "up").symlink_to("../link")
    (source / os.fsdecode(b"\xff\xfe")).write_bytes(b"odd")
    os.mkfifo(source / "pipe")
    target.mkdir()
    left: list[str] = []
    archive = await sent(source, left.append)
    assert left == [str(source / "pipe")]
    assert size_of(source) == 100_004
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert {(member.uid, member.gid) for member in opened} == {(0, 0)}
    assert received(target, archive) == []
    (source / "pipe").unlink()
    assert tree(target / "top") == tree(source)
    assert (target / "top" / "below" / "program").stat().st_mtime == -86400 * 4000
    assert received(target / "renamed", archive) == []
    assert tree(target / "renamed") == tree(source)
    (source / "below" / "binary").write_bytes(b"new")
    assert received(target, await sent(source)) == []
    assert (target / "top" / "below" / "binary").read_bytes() == b"new"


async def test_what_is_in_a_directory_goes_without_it(tmp_path: Path) -> None:
    """``PATH/.``: into the target, or as a directory of that name."""
    archive = entry("./", kind=tarfile.DIRTYPE, mode=0o755) + entry("./a", b"A") + END
    (tmp_path / "there").mkdir()
    received(tmp_path / "there", archive, source="/srv/.")
    received(tmp_path / "new", archive, source="/")
    assert (tmp_path / "there" / "a").read_bytes() == (tmp_path / "new" / "a").read_bytes() == b"A"


@pytest.mark.parametrize(
    "archive",
    [
        entry("../out", b"x"),
        entry("/out", b"x"),
        entry("other", b"x"),
        entry("top", kind=tarfile.DIRTYPE) + entry("top/../../out", b"x"),
        entry("top", kind=tarfile.DIRTYPE) + entry("top/./x", b"x"),
        entry("top", kind=tarfile.DIRTYPE) + entry("top//x", b"x"),
        entry("top/missing/x", b"x"),
        entry("top", kind=tarfile.DIRTYPE) + entry("top/hard", kind=tarfile.LNKTYPE, link="/etc/passwd"),
        entry("top", kind=tarfile.DIRTYPE) + entry("top/evil", b"x", kind=tarfile.XHDTYPE),
        entry("top", kind=tarfile.DIRTYPE) + entry("top/l", kind=tarfile.SYMTYPE, link="x") + entry("top/l/x", b"x"),
        entry("L", b"x" * 5000, kind=tarfile.GNUTYPE_LONGNAME),
        b"no archive at all" * 100,
        entry("top", b"x" * 2000)[:1500],
        b"",
    ],
)
def test_a_hostile_machine_writes_nowhere_else(tmp_path: Path, archive: bytes) -> None:
    """Refused; nothing appears beside the target, no half file in it."""
    target = tmp_path / "host" / "target"
    target.mkdir(parents=True)
    with pytest.raises(Invalid):
        received(target, archive + (END if len(archive) % 512 == 0 and archive else b""))
    assert sorted(path.name for path in tmp_path.rglob("*") if not path.is_dir()) in ([], ["l"])
    assert names(tmp_path) == ["host"] and names(tmp_path / "host") == ["target"]


def test_links_and_devices_of_a_hostile_machine(tmp_path: Path) -> None:
    """Links that lead out are left out, by whatever way; so are devices; no set-user-ID; a link here is never followed."""
    archive = entry("top", kind=tarfile.DIRTYPE, mode=0o777)
    links = {"a": "/etc/passwd", "b": "../out", "c": "d/../../..", "e": "..", "ok": "./f"}
    for name, link in links.items():
        archive += entry(f"top/{name}", kind=tarfile.SYMTYPE, link=link)
    archive += entry("top/device", kind=tarfile.CHRTYPE) + entry("top/f", b"f", mode=0o6755) + END
    left = received(tmp_path, archive)
    assert [one.partition(":")[0] for one in left] == ["top/a", "top/b", "top/c", "top/e", "top/device"]
    assert names(tmp_path / "top") == ["f", "ok"]
    assert stat.S_IMODE((tmp_path / "top" / "f").stat().st_mode) == 0o755

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "top" / "sub").symlink_to(elsewhere)
    with pytest.raises(Invalid, match="a link"):
        received(tmp_path, entry("top", kind=tarfile.DIRTYPE) + entry("top/sub/x", b"x") + END)
    (tmp_path / "top" / "file").symlink_to(elsewhere / "file")
    received(tmp_path, entry("top", kind=tarfile.DIRTYPE) + entry("top/file", b"x") + END)
    assert names(elsewhere) == [] and not (tmp_path / "top" / "file").is_symlink()


def test_a_target_without_a_directory(tmp_path: Path) -> None:
    """Is not made up."""
    with pytest.raises(NotFound):
        received(tmp_path / "no" / "target", entry("top", b"x") + END)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["top", "../x", "top/a", "top/a/b", "/x", "L", "top/l"]), st.binary(max_size=600))),
    st.data(),
)
def test_no_archive_at_all_gets_out(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    """Entries of any kind, with bytes changed anywhere: refused or taken, and nothing beside the target."""
    kinds = st.sampled_from(
        [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
    )
    archive = bytearray(b"".join(entry(name, body, kind=data.draw(kinds), link="../..") for name, body in parts) + END)
    for at in data.draw(st.lists(st.integers(0, len(archive) - 1), max_size=3)):
        archive[at] = data.draw(st.integers(0, 255))
    outside = tmp_path_factory.mktemp("fuzz")
    (outside / "target").mkdir()
    with contextlib.suppress(CastoffError):
        received(outside / "target", bytes(archive))
    assert names(outside) == ["target"]
