"""What a host says of itself, and how much of it the others believe."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from castoff.errors import Invalid

__all__ = ["MOST_BYTES", "Gpus", "HostRecord", "read_record"]

MOST_BYTES = 16 * 1024
"""Of one record."""

HostId: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
_Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[\x20-\x7e]*\Z")]
_URL = r"^(https://[\x21-\x7e]+|http://(127\.|localhost[:/]|\[::1\])[\x21-\x7e]*)?\Z"
_Url: TypeAlias = Annotated[str, msgspec.Meta(max_length=255, pattern=_URL)]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """A host's GPUs of one kind."""

    total: _Count
    free: _Count


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A host, as it last told. Unknown fields are passed over, so that versions can differ in a fleet."""

    id: HostId
    """Made once, kept in the host's state."""
    name: _Text
    region: _Text
    zone: _Text = ""
    labels: Annotated[dict[_Text, _Text], msgspec.Meta(max_length=64)] = {}
    version: _Text = ""
    """castoff's."""
    peers: _Url = ""
    """Where it serves chunks to other hosts; empty: it does not."""
    cpus: _Count = 0
    """Processors that machines may have."""
    cpus_free: _Count = 0
    memory_mb: _Count = 0
    """MiB that machines may have."""
    memory_free_mb: _Count = 0
    gpus: Annotated[dict[_Text, Gpus], msgspec.Meta(max_length=64)] = {}
    """By kind."""
    machines: _Count = 0
    """Machines that run."""
    layers: _Count = 0
    """The number of its latest list of layers (:mod:`castoff.fleet.inventory`)."""
    clock: _Count = 0
    """Its own, Unix seconds: for people, who may see that clocks differ. Nothing is decided by it."""


_decoder = msgspec.json.Decoder(HostRecord)


def read_record(key: str, data: bytes) -> HostRecord:
    """A host's record.

    Args:
        key: The key under which it was found: a host speaks of itself only.
        data: What was found.

    Raises:
        Invalid: It is none.
    """
    if len(data) > MOST_BYTES:
        raise Invalid(f"the record of host {key[:40]!r} has {len(data)} bytes")
    try:
        record = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the record of host {key[:40]!r} is none: {error}") from error
    if record.id != key:
        raise Invalid(f"the record of host {key[:40]!r} speaks of host {record.id}")
    return record
