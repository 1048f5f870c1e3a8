"""Protocol buffers' wire format for frozen dataclasses: as much of it as containerd's API uses.

A message is a dataclass whose fields say their number::

    @dataclass(frozen=True, slots=True)
    class Descriptor:
        media_type: Annotated[str, 1] = ""
        annotations: Annotated[Mapping[str, str], 5] = field(default_factory=dict)

Types are ``str``, ``bytes``, ``int`` (int64 or an enum), ``bool``, a message (``M | None``), ``tuple`` of one of these
(repeated), and ``Mapping[str, str]``. Generated code would need protoc to build and would tie us to the versions of the protobuf
runtime that it was generated for; this needs neither, and mypy sees what a message has.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from castoff.errors import Invalid

__all__ = ["decode", "encode"]

M = TypeVar("M")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    number: int
    kind: Any
    """str, bytes, int, bool, Mapping, or a message's class."""
    repeated: bool

    @property
    def wire_type(self) -> int:
        return _VARINT if self.kind in (int, bool) else _BYTES


_known: dict[type[Any], tuple[_Field, ...]] = {}


def _fields(message: type[Any]) -> tuple[_Field, ...]:
    """The fields of a message's class, by ascending number; worked out once."""
    if message not in _known:
        _known[message] = _described(message)
    return _known[message]


def _described(message: type[Any]) -> tuple[_Field, ...]:
    found = []
    for name, hint in get_type_hints(message, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        kind, number = get_args(hint)
        repeated = get_origin(kind) is tuple
        if repeated:
            kind = get_args(kind)[0]
        if get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not types.NoneType)
        if get_origin(kind) is Mapping:
            kind = Mapping
        found.append(_Field(name, number, kind, repeated))
    return tuple(sorted(found, key=lambda field: field.number))


def encode(message: Any) -> bytes:
    """The message's bytes. Fields that have their type's zero are left out, as proto3 does."""
    out = bytearray()
    for field in _fields(type(message)):
        value = getattr(message, field.name)
        if field.kind is Mapping:
            for key, text in value.items():
                entry = b"\x0a" + _delimited(key.encode()) + b"\x12" + _delimited(text.encode())
                out += _varint(field.number << 3 | _BYTES) + _delimited(entry)
            continue
        for item in value if field.repeated else (value,) if value or is_dataclass(value) else ():
            out += _varint(field.number << 3 | field.wire_type) + _encode_value(field.kind, item)
    return bytes(out)


def _encode_value(kind: Any, value: Any) -> bytes:
    if kind in (int, bool):
        return _varint(int(value) & (1 << 64) - 1)  # a negative one is its two's complement in 64 bits
    if kind is str:
        return _delimited(value.encode())
    return _delimited(value if kind is bytes else encode(value))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(data: bytes) -> bytes:
    return _varint(len(data)) + data


def decode(message: type[M], data: bytes) -> M:
    """Reads a message; fields that its class does not have are passed over.

    Raises:
        Invalid: The bytes are no message.
    """
    known = {field.number: field for field in _fields(message)}
    values: dict[str, Any] = {}
    try:
        for number, wire_type, value in _read(data):
            field = known.get(number)
            if field is None:
                continue
            if wire_type != field.wire_type:
                raise ValueError(f"field {number} has wire type {wire_type}")
            _keep(values, field, value)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise Invalid(f"containerd's {message.__name__} is broken: {error}") from error
    return message(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _keep(values: dict[str, Any], field: _Field, value: Any) -> None:
    if field.kind is Mapping:
        pair = {number: part.decode() for number, _, part in _read(value) if number in (1, 2)}
        values.setdefault(field.name, {})[pair.get(1, "")] = pair.get(2, "")
    elif field.repeated:
        values.setdefault(field.name, []).append(_decode_value(field.kind, value))
    else:
        values[field.name] = _decode_value(field.kind, value)


def _decode_value(kind: Any, value: Any) -> Any:
    if kind is int:
        return value - (1 << 64) if value >> 63 else value
    if kind is bool:
        return bool(value)
    if kind is str:
        return value.decode()
    return bytes(value) if kind is bytes else decode(kind, value)


def _read(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, int or bytes) of each field in a message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (1 << 64) - 1
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 10 bytes")

    def piece(length: int) -> bytes:
        nonlocal at
        if length > len(data) - at:
            raise ValueError("it is cut off")
        at += length
        return data[at - length : at]

    readers: dict[int, Callable[[], Any]] = {
        _VARINT: varint,
        _FIXED64: lambda: piece(8),
        _BYTES: lambda: piece(varint()),
        _FIXED32: lambda: piece(4),
    }
    while at < len(data):
        key = varint()
        if key & 7 not in readers:
            raise ValueError(f"wire type {key & 7}")
        yield key >> 3, key & 7, readers[key & 7]()
