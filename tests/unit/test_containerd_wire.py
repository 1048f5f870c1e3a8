"""Our protocol buffers against Google's, and against bytes that are none."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import Invalid
from castoff.rootfs.containerd.wire import decode, encode

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class Inner:
    text: Annotated[str, 1] = ""
    number: Annotated[int, 16] = 0


@dataclass(frozen=True, slots=True)
class Outer:
    """Every kind of field that there is."""

    text: Annotated[str, 1] = ""
    number: Annotated[int, 2] = 0
    flag: Annotated[bool, 3] = False
    data: Annotated[bytes, 4] = b""
    inner: Annotated[Inner | None, 5] = None
    texts: Annotated[tuple[str, ...], 6] = ()
    inners: Annotated[tuple[Inner, ...], 2047] = ()
    labels: Annotated[Mapping[str, str], 8] = field(default_factory=dict)


def googles() -> type[Any]:
    """The same message, made by Google's library from a description."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    inner = file.message_type.add(name="Inner")
    inner.field.add(name="text", number=1, type=kinds.TYPE_STRING, label=1)
    inner.field.add(name="number", number=16, type=kinds.TYPE_INT64, label=1)
    outer = file.message_type.add(name="Outer")
    entry = outer.nested_type.add(name="LabelsEntry")
    entry.options.map_entry = True
    for number, name in enumerate(("key", "value"), start=1):
        entry.field.add(name=name, number=number, type=kinds.TYPE_STRING, label=1)
    for number, name, kind, label, message in (
        (1, "text", kinds.TYPE_STRING, 1, ""),
        (2, "number", kinds.TYPE_INT64, 1, ""),
        (3, "flag", kinds.TYPE_BOOL, 1, ""),
        (4, "data", kinds.TYPE_BYTES, 1, ""),
        (5, "inner", kinds.TYPE_MESSAGE, 1, ".t.Inner"),
        (6, "texts", kinds.TYPE_STRING, 3, ""),
        (2047, "inners", kinds.TYPE_MESSAGE, 3, ".t.Inner"),
        (8, "labels", kinds.TYPE_MESSAGE, 3, ".t.Outer.LabelsEntry"),
    ):
        outer.field.add(name=name, number=number, type=kind, label=label, type_name=message or None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Outer"))


GOOGLES = googles()
INNERS = st.builds(Inner, text=st.text(max_size=20), number=INT64)
OUTERS = st.builds(
    Outer,
    text=st.text(max_size=200),
    number=INT64,
    flag=st.booleans(),
    data=st.binary(max_size=300),
    inner=st.none() | INNERS,
    texts=st.lists(st.text(max_size=10), max_size=4).map(tuple),
    inners=st.lists(INNERS, max_size=4).map(tuple),
    labels=st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=4),
)


def as_googles(message: Outer) -> Any:
    them = GOOGLES(text=message.text, number=message.number, flag=message.flag, data=message.data)
    if message.inner is not None:
        them.inner.SetInParent()
        them.inner.text, them.inner.number = message.inner.text, message.inner.number
    them.texts.extend(message.texts)
    for inner in message.inners:
        them.inners.add(text=inner.text, number=inner.number)
    them.labels.update(message.labels)
    return them


@given(OUTERS)
def test_google_reads_what_we_write(message: Outer) -> None:
    """Field for field, an empty inner message and repeated empty texts too."""
    assert GOOGLES.FromString(encode(message)) == as_googles(message)


@given(OUTERS)
def test_we_read_what_google_writes(message: Outer) -> None:
    """And what we wrote ourselves."""
    assert decode(Outer, as_googles(message).SerializeToString()) == message
    assert decode(Outer, encode(message)) == message


def test_unknown_fields_are_passed_over() -> None:
    """A newer containerd says more than we know of: of every wire type."""
    more = b"\x2a\x03abc" + b"\x49" + bytes(8) + b"\x55" + bytes(4) + b"\x58\x01"
    assert decode(Inner, more + encode(Inner("x", 5)) + more) == Inner("x", 5)


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    """Never another error, never a hang."""
    with contextlib.suppress(Invalid):
        decode(Outer, data)


@pytest.mark.parametrize(
    "data", [b"\x0a", b"\x0a\x05ab", b"\x10" + b"\xff" * 11, b"\x0b", b"\x08\x01", b"\x0a\x02\xff\xfe", b"\x2a\x02\x0a\x05"]
)
def test_broken_messages_are_refused(data: bytes) -> None:
    """Cut off, over-long numbers, groups, wrong wire types, text that is none."""
    with pytest.raises(Invalid, match="containerd's"):
        decode(Outer, data)
