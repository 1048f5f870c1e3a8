"""Random stacks of layers: what castoff composes is what a plain model of umoci's unpacker has, and is sound."""

from __future__ import annotations

import stat
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hypothesis import event, given
from hypothesis import strategies as st

import ext4_model
from castoff.errors import Invalid
from castoff.ext4.check.filesystem import check
from castoff.ext4.check.walk import File, walk
from castoff.layers.toc import Kind
from ext4_images import compose_rows, fsck
from ext4_toc import Row

NAMES = [b"a", b"b", b"c", b"\xc3\xa9" + b"x" * 90]
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(b"/".join)
targets = st.one_of(
    paths,
    paths.map(lambda path: b"/" + path),
    paths.map(lambda path: b"../" + path),
    st.sampled_from([b".", b"..", b"/", b"../../a/..", b"a//b/", b"t" * 70]),
)
attributes = st.sampled_from(
    [
        (),
        ((b"user.x", b"1"),),
        ((b"user.long", b"v" * 300),),
        ((b"security.capability", bytes(20)), (b"trusted.t", b"")),
        ((b"user.a", b"h" * 5000), (b"user.small", b"s")),
        ((b"user.b", b"h" * 5000), (b"user.c", b"h" * 5000), (b"user.largest", bytes(range(256)) * 256)),
    ]
)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    kind = draw(
        st.sampled_from(
            [Kind.FILE] * 4 + [Kind.DIRECTORY] * 4 + [Kind.SYMLINK] * 2 + [Kind.HARDLINK] * 2 + [Kind.WHITEOUT] * 2
            + [Kind.OPAQUE, Kind.FIFO, Kind.CHARACTER, Kind.BLOCK]
        )
    )  # fmt: skip
    path = draw(paths)
    if kind in (Kind.DIRECTORY, Kind.OPAQUE) and draw(st.integers(0, 9)) == 0:
        path = b""
    return Row(
        path,
        kind,
        mode=draw(st.sampled_from([0o644, 0o755, 0o4711, 0o1777, 0])),
        uid=draw(st.sampled_from([0, 1000, 70000, 2**32 - 2])),
        mtime=draw(st.sampled_from([0, -1, 1700000000, 2**31, 2**33, -(2**31)])),
        mtime_ns=draw(st.sampled_from([0, 1, 999_999_999])),
        contents=draw(st.sampled_from([b"", b"x", b"y" * 5000, b"z" * 300000])) if kind == Kind.FILE else b"",
        target=draw(targets if kind == Kind.SYMLINK else paths) if kind in (Kind.SYMLINK, Kind.HARDLINK) else b"",
        device=draw(st.sampled_from([(1, 3), (259, 1), (8, 300)])) if kind in (Kind.CHARACTER, Kind.BLOCK) else (0, 0),
        attributes=draw(attributes) if kind in (Kind.FILE, Kind.DIRECTORY) else (),
    )


layers = st.lists(st.lists(rows(), max_size=10), min_size=1, max_size=4)


KINDS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
}


def compare(found: Sequence[File], expected: ext4_model.Node) -> None:
    """Every path, every attribute, and which paths are one inode."""
    wanted = dict(ext4_model.listing(expected))
    found = [file for file in found if file.path != b"lost+found"]
    assert {file.path for file in found} == set(wanted)
    links = Counter(id(node) for node in wanted.values())
    inodes: dict[int, int] = {}
    for file in found:
        node = wanted[file.path]
        row = node.row
        mode = 0o777 if node.kind == Kind.SYMLINK else row.mode
        assert file.mode == KINDS[node.kind] | mode, file
        assert (file.uid, file.gid, file.mtime) == (row.uid, row.gid, (row.mtime, row.mtime_ns)), file
        assert file.target == (row.target if node.kind == Kind.SYMLINK else b"")
        assert file.device == row.device
        assert file.attributes == dict(row.attributes)
        assert file.contents == row.contents
        assert inodes.setdefault(id(node), file.inode) == file.inode
        if node.kind != Kind.DIRECTORY:
            assert file.links == links[id(node)]


@given(layers)
def test_any_stack_of_layers_is_what_umoci_would_make(stack: list[list[Row]]) -> None:
    """Whatever the order and the contradictions, the composed tree is the model's, or both refuse."""
    root = ext4_model.new_root()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        path = Path(directory) / "rootfs"
        try:
            for layer in stack:
                ext4_model.apply(root, layer)
        except ext4_model.Contradiction as error:
            event(f"refused: {error}")
            try:
                compose_rows(path, stack)
            except Invalid:
                return
            raise AssertionError(f"composed what cannot be: {error}") from error
        compose_rows(path, stack)
        event("composed")
        assert [str(problem) for problem in check(path)] == []
        assert fsck(path) == ""
        compare(list(walk(path, contents=True)), root)
