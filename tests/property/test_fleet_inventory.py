"""Lists of layers and records of hosts: what is written is read again, and nothing that is read makes more than its bounds."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import Invalid
from castoff.fleet.inventory import MOST_BYTES, MOST_LAYERS, Inventory
from castoff.fleet.record import HostRecord, read_record
from castoff.image.digest import Digest

layers = st.sets(st.binary(min_size=8, max_size=8).map(lambda data: Digest((4 * data).hex())), max_size=60)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 64) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
IDENTITY = "00000000000000aa"
RECORD = HostRecord(id=IDENTITY, name="one", region="fra", labels={"disk": "nvme"}, peers="https://one:4290")


@given(whole=layers, part=layers, other=layers)
def test_a_list_has_what_was_put_in(whole: set[Digest], part: set[Digest], other: set[Digest]) -> None:
    found = Inventory.read(Inventory.of(whole, part).to_bytes())
    assert len(found) == len(whole) + len(part)
    assert all(found.has(layer) == (layer in whole) for layer in whole | part | other)
    assert all(found.begins(layer) == (layer in part) for layer in whole | part | other)


@given(whole=layers, part=layers, order=st.randoms())
def test_equal_lists_are_equal_bytes(whole: set[Digest], part: set[Digest], order: object) -> None:
    """Whatever the order in which a directory has them: else a list would be told again that did not change."""
    shuffled = sorted(whole)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Inventory.of(shuffled, part).to_bytes() == Inventory.of(whole, sorted(part)).to_bytes()


@given(st.binary(max_size=200) | st.binary(max_size=64).map(lambda rest: b"cin1" + rest))
def test_bytes_that_strangers_made(data: bytes) -> None:
    """They are a list, which says the same when it is written again, or they are refused."""
    try:
        found = Inventory.read(data)
    except Invalid:
        return
    assert found.to_bytes() == data


@given(whole=layers, cut=st.integers(0, 200))
def test_a_list_that_was_cut(whole: set[Digest], cut: int) -> None:
    data = Inventory.of(whole).to_bytes()
    if cut < len(data):
        with pytest.raises(Invalid):
            Inventory.read(data[:cut])
    with pytest.raises(Invalid):
        Inventory.read(data + bytes(cut + 1))


@pytest.mark.parametrize("counts", [(MOST_LAYERS + 1, 0), (MOST_LAYERS, 1), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_too_long_a_list(counts: tuple[int, int]) -> None:
    """Counts are believed within the bound only, and only when so many layers follow."""
    rows = np.arange(min(sum(counts), MOST_LAYERS + 1), dtype="<u8").tobytes()
    with pytest.raises(Invalid):
        Inventory.read(struct.pack("<4sII", b"cin1", *counts) + rows)


def test_of_too_many_layers_some_are_told() -> None:
    """A host with more has a list that the servers take: it is a hint, and a NATS message has 1 MiB at most."""
    many = [Digest(f"{number << 200:064x}") for number in range(MOST_LAYERS + 50)]
    data = Inventory.of(many, many[:70]).to_bytes()
    assert len(data) <= MOST_BYTES < 1 << 20
    assert len(Inventory.read(data)) == MOST_LAYERS


def test_ten_thousand_layers() -> None:
    """What a large host tells when its list changed."""
    layers = [Digest(f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}{number:048x}") for number in range(10_000)]
    assert len(Inventory.of(layers).to_bytes()) == 80_012


@given(
    field=st.sampled_from(
        msgspec.json.schema_components([HostRecord])[1]["HostRecord"]["required"] + ["labels", "peers", "gpus", "cpus"]
    ),
    value=anything,
)
def test_a_field_of_another_kind(field: str, value: object) -> None:
    """A record is whole or is refused; one that is taken can be written again, as plain as it was."""
    data = msgspec.json.encode(msgspec.to_builtins(RECORD) | {field: value})
    try:
        found = read_record(IDENTITY, data)
    except Invalid as error:
        assert "\x1b" not in str(error)
        return
    assert read_record(IDENTITY, msgspec.json.encode(found)) == found
    assert found.id == IDENTITY


@given(st.binary(max_size=300))
def test_a_record_of_any_bytes(data: bytes) -> None:
    with pytest.raises(Invalid):
        read_record(IDENTITY, data)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1:80", "ftp://one", "https://one\nhttps://two", "file:///etc/passwd", "https://o ne"]
)
def test_urls_that_nobody_asks(url: str) -> None:
    """Hosts are asked over TLS, and no text that one writes becomes two lines of the file that fetches read."""
    with pytest.raises(Invalid):
        read_record(IDENTITY, msgspec.json.encode(msgspec.to_builtins(RECORD) | {"peers": url}))
