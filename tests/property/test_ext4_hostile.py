"""Tables of contents that nobody's converter wrote: refused in one line, or composed into a sound filesystem."""

from __future__ import annotations

import os
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from castoff.errors import CastoffError, Invalid
from castoff.ext4.check.filesystem import check
from castoff.ext4.compose import compose
from castoff.ext4.tables import compile_tables
from castoff.image.digest import Digest
from castoff.layers.toc import Kind, Toc
from ext4_images import fsck
from ext4_toc import Row, build_toc

SEED_ROWS = [
    Row(b"a", Kind.DIRECTORY, mode=0o755, attributes=((b"user.x", b"1"), (b"user.y", b"v" * 300))),
    Row(b"a/f", contents=b"f" * 9000, holes=frozenset({1})),
    Row(b"a/l", Kind.SYMLINK, target=b"f"),
    Row(b"a/h", Kind.HARDLINK, target=b"a/f"),
    Row(b"a/b/c", contents=b"c" * 300000),
    Row(b"d", Kind.CHARACTER, device=(1, 3)),
    Row(b"w", Kind.WHITEOUT),
    Row(b"a/b", Kind.OPAQUE),
]
COLUMNS = [field.name for field in fields(Toc) if field.name != "segment_size"]
VALUES = st.one_of(st.integers(0, 12), st.sampled_from([0x2F, 0x2E, 255, 256, 4095, 2**16 - 1, 2**20, 2**31, 2**32 - 1, 2**63]))


@st.composite
def broken(draw: st.DrawFn) -> Toc:
    """A sound TOC with some values changed, and perhaps a column of another length."""
    toc, _ = build_toc(SEED_ROWS)
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(COLUMNS))
        column = getattr(toc, name).copy()
        if draw(st.integers(0, 19)) == 0:
            toc = replace(toc, **{name: column[: draw(st.integers(0, len(column)))]})
        elif len(column):
            information = np.iinfo(column.dtype)
            value = draw(VALUES)
            column[draw(st.integers(0, len(column) - 1))] = min(value, information.max)
            toc = replace(toc, **{name: column})
    if draw(st.integers(0, 9)) == 0:
        toc = replace(toc, segment_size=draw(st.sampled_from([0, 4096, 4097, 2**40, 2**62, -4096])))
    return toc


@given(broken(), st.booleans())
def test_a_broken_table_of_contents_never_makes_a_broken_filesystem(toc: Toc, above: bool) -> None:
    """Alone or above a sound layer."""
    sound = build_toc([Row(b"a/b/old", contents=b"o"), Row(b"w", contents=b"w"), Row(b"d", Kind.DIRECTORY)])[0]
    try:
        tables = [compile_tables(sound)] if above else []
        tables.append(compile_tables(toc))
        composition = compose([(Digest.of(bytes([number])), each) for number, each in enumerate(tables)])
    except CastoffError as error:
        assert "\n" not in str(error)
        event("refused")
        return
    event("composed")
    if composition.size > 1 << 34:
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        path = Path(directory) / "rootfs"
        with path.open("xb") as file:
            composition.write(file.fileno())
            os.fsync(file.fileno())
        assert [str(problem) for problem in check(path)] == []
        assert fsck(path) == ""


DEFAULT_ACL = bytes([2, 0, 0, 0]) + b"".join(bytes([tag, 0, 5, 0, 255, 255, 255, 255]) for tag in (1, 4, 32))
CHAIN = [Row(b"s%d" % number, Kind.SYMLINK, target=b"s%d" % (number + 1)) for number in range(50)]
NAMES = tuple((b"user.%04d" % number, bytes(number)) for number in range(300))

REFUSED = [
    ([Row(b"h", Kind.HARDLINK, target=b"missing")], "'h' is a hardlink to 'missing', which is no file there"),
    ([Row(b"h", Kind.HARDLINK, target=b"h")], "'h' is a hardlink to 'h', which is no file there"),
    ([Row(b"h"), Row(b"h", Kind.HARDLINK, target=b"h")], "is a hardlink to itself"),
    ([Row(b"d", Kind.DIRECTORY), Row(b"h", Kind.HARDLINK, target=b"d")], "a hardlink to a directory"),
    ([Row(b"h", Kind.HARDLINK, target=b"")], "'h' is a hardlink to ''"),
    ([Row(b"f"), Row(b"f/x")], "'f/x' lies below 'f', which is a file"),
    ([Row(b"l", Kind.SYMLINK, target=b"l"), Row(b"l/x")], "'l/x' leads through more than 40 symlinks"),
    ([*CHAIN, Row(b"s50", Kind.DIRECTORY), Row(b"s0/x")], "'s0/x' leads through more than 40 symlinks"),
    ([Row(b"lost+found")], "lost+found"),
    ([Row(b"f", attributes=NAMES)], "'f', has extended attributes whose names take 6000 bytes"),
    ([Row(b"f", attributes=((b"system.posix_acl_access", b"nonsense"),))], "'f', has an ACL that is none"),
    ([Row(b"f", attributes=((b"system.posix_acl_default", DEFAULT_ACL),))], "'f', has a default ACL"),
    ([Row(b"x" * 256)], "a name of over 255 bytes"),
    ([Row(b"a\0b")], "a NUL or a slash in its name"),
    ([Row(b"f", size=1 << 45)], "'f', is larger than ext4 allows"),
    ([Row(b"c", Kind.CHARACTER, device=(5000, 1))], "'c', has device numbers that Linux has not"),
]


@pytest.mark.parametrize(("rows", "message"), REFUSED)
def test_what_no_filesystem_can_have_is_refused_by_name(rows: list[Row], message: str) -> None:
    """The error says which entry, and why; in a layer of its own and above another."""
    for below in ([], [[Row(b"other", contents=b"o")]]):
        stack = [*below, rows]
        with pytest.raises(Invalid) as caught:
            compose([(Digest.of(bytes([number])), compile_tables(build_toc(each)[0])) for number, each in enumerate(stack)])
        assert message in str(caught.value)


def test_a_chain_of_forty_symlinks_is_followed() -> None:
    """As far as Linux follows."""
    rows = [Row(b"s%d" % number, Kind.SYMLINK, target=b"s%d" % (number + 1)) for number in range(40)]
    rows += [Row(b"s40", Kind.DIRECTORY), Row(b"s0/x")]
    compose([(Digest.of(b"0"), compile_tables(build_toc(rows)[0]))])


def test_names_that_collide_in_their_hash_are_refused() -> None:
    """Two different paths with one key: 64 bits are not much for somebody who looks for a collision."""
    toc, _ = build_toc([Row(b"a"), Row(b"b")])
    tables = compile_tables(toc)
    lower = replace(tables, record_key=tables.record_key, key=tables.key)
    forged = tables.record_item.copy()
    # The key of "a" with the item of "b", as a collision would have it.
    first, second = (int(np.flatnonzero(forged == item)[0]) for item in (0, 1))
    forged[first], forged[second] = forged[second], forged[first]
    with pytest.raises(Invalid, match="collide"):
        compose([(Digest.of(b"0"), lower), (Digest.of(b"1"), replace(tables, record_item=forged))])
