"""An order: images that chosen hosts make ready, once or for as long as it stands.

It is written once by whoever gives it, then by the host that leads (castoff.agent.fleet): which digests the images have now,
or why it failed. What each host did of it is a part, written by that host alone. Whatever is read here was written by
another host, perhaps of another version, perhaps by somebody's hand: it is bounded and checked, and what cannot be read
becomes a failed order.
"""

from __future__ import annotations

import enum
import os
import time
from typing import Annotated, Final, TypeAlias

import msgspec

from castoff.errors import CastoffError, Invalid, NotFound
from castoff.fleet.selector import parse_selector
from castoff.fleet.window import parse_window
from castoff.image.digest import Digest
from castoff.image.image import Platform
from castoff.image.platforms import parse_platform
from castoff.image.reference import RegistryReference, parse_reference

__all__ = [
    "LIFE",
    "MOST_BYTES",
    "VERSION",
    "Order",
    "OrderState",
    "Part",
    "PartState",
    "encode",
    "failed",
    "is_order_id",
    "new_order",
    "pinned",
    "read_order",
    "read_part",
]

VERSION: Final = 1
MOST_BYTES: Final = 256 * 1024
"""Of an order as it is written."""
LIFE: Final = 7 * 86400.0
"""Seconds that an order which does not stand is open to hosts that come back."""
MOST_IMAGES: Final = 256

_Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=1000)]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_OrderId: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{12}\Z")]
_HostId: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
_Images: TypeAlias = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=512)], ...], msgspec.Meta(max_length=MOST_IMAGES)]


class OrderState(enum.StrEnum):
    """Where an order is."""

    NEW = "new"
    """Nobody has looked yet what its images are."""
    OPEN = "open"
    """Hosts do their parts."""
    FAILED = "failed"
    """Nobody does any more of it: ``reason`` says why."""
    CANCELLED = "cancelled"


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An order. A field that is not known may ask for what this version does not do, so there are none."""

    version: Annotated[int, msgspec.Meta(ge=1)] = VERSION
    id: _OrderId
    images: _Images
    hosts: _Text = "all"
    """As :func:`castoff.fleet.selector.parse_selector` reads it."""
    keep: bool = False
    """It stands: the images' tags are watched until it is cancelled."""
    limit: _Count = 0
    """Bytes a second and host that are fetched at most; 0: no limit."""
    window: _Text = ""
    size: _Count = 0
    """Bytes of the root filesystems; 0: the hosts' own setting."""
    platform: _Text = ""
    """Empty: the host's own."""
    profile_only: bool = False
    by: _Text = ""
    """The host at which it was given, for people."""
    created: _Count = 0
    """Unix seconds, by the clock of the host at which it was given."""
    ended: _Count = 0
    """Unix seconds, by the clock of the host that cancelled it, or found that it failed; 0: it did not end."""
    state: OrderState = OrderState.NEW
    reason: _Text = ""
    digests: _Images = ()
    """What the images are now, ``sha256:...`` each; empty: not known yet."""
    generation: _Count = 0
    """Raised when the digests change: parts of an earlier one are done again."""
    tries: _Count = 0
    """How often somebody looked in vain what its images are."""


class PartState(enum.StrEnum):
    """Where a host is with its part."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has done of an order."""

    order: _OrderId
    host: _HostId
    name: _Text = ""
    """The host's, for people."""
    generation: _Count = 0
    state: PartState = PartState.WAITING
    attempts: _Count = 0
    """Begun, this one too: written before it begins, so that one which kills its host is counted."""
    images_done: _Count = 0
    done: _Count = 0
    """Bytes that came in for the image that is under way."""
    total: _Count = 0
    """Of so many; 0: not known."""
    reason: _Text = ""
    """Why it waits, or failed."""
    code: str = ""
    """What kind of failure it was (:class:`castoff.errors.Code`)."""
    clock: _Count = 0
    """The host's own, Unix seconds: for people."""


_orders = msgspec.json.Decoder(Order)
_parts = msgspec.json.Decoder(Part)
_version = msgspec.json.Decoder(msgspec.defstruct("_Version", [("version", int, 0)]))


def is_order_id(text: str) -> bool:
    """Whether an order can have this id."""
    return len(text) == 12 and all(letter in "0123456789abcdef" for letter in text)


def new_order(
    images: tuple[str, ...],
    *,
    hosts: str = "all",
    keep: bool = False,
    limit: int = 0,
    window: str = "",
    size: int | None = None,
    platform: Platform | None = None,
    profile_only: bool = False,
    by: str = "",
) -> Order:
    """An order that was just given.

    Raises:
        Invalid: No host could do it, whatever the registry says.
    """
    order = Order(
        id=os.urandom(6).hex(),
        images=tuple(dict.fromkeys(images)),
        hosts=hosts,
        keep=keep,
        limit=limit,
        window=window,
        size=size or 0,
        platform=str(platform) if platform else "",
        profile_only=profile_only,
        by=by,
        created=int(time.time()),
    )
    return read_order(order.id, encode(order))


def encode(value: Order | Part) -> bytes:
    """As it is written."""
    return msgspec.json.encode(value)


def read_order(key: str, data: bytes) -> Order:
    """An order, all of which makes sense.

    Raises:
        NotFound: It is of a later version: this host leaves it to others.
        Invalid: It is none; or no host could do it.
    """
    what = f"order {key[:40]!a}"
    if len(data) > MOST_BYTES:
        raise Invalid(f"{what} has {len(data)} bytes", hint=f"at most {MOST_BYTES}; give several orders")
    try:
        if _version.decode(data).version > VERSION:  # type: ignore[attr-defined]
            raise NotFound(f"{what} is of a later castoff", hint="bring this host up to date")
        order = _orders.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{what} cannot be read: {error}") from error
    if order.id != key:
        raise Invalid(f"{what} calls itself {order.id}")
    if order.digests and len(order.digests) != len(order.images):
        raise Invalid(f"{what} has {len(order.digests)} digests for {len(order.images)} images")
    if order.state in (OrderState.NEW, OrderState.OPEN):
        _check(what, order)
    return order


def _check(what: str, order: Order) -> None:
    try:
        if not order.images:
            raise Invalid("it names no image")
        parse_selector(order.hosts)
        parse_window(order.window)
        if order.platform:
            parse_platform(order.platform)
        for image in order.images:
            _tagged(image, keep=order.keep)
        for digest in order.digests:
            Digest.parse(digest)
    except CastoffError as error:
        raise Invalid(f"{what}: {error.what}", hint=error.hint) from error


def _tagged(image: str, *, keep: bool) -> RegistryReference:
    reference = parse_reference(image)
    if not isinstance(reference, RegistryReference):
        raise Invalid(f"{image} is on a disk that the other hosts do not have", hint="push it to a registry")
    if keep and reference.digest is not None:
        raise Invalid(f"{image} is a digest, which never changes", hint="give the order without --keep, or name a tag")
    return reference


def read_part(key: str, data: bytes) -> Part:
    """A host's part.

    Args:
        key: ``ORDER.HOST``.
        data: What was found there.

    Raises:
        Invalid: It is none.
    """
    try:
        part = _parts.decode(data[: MOST_BYTES + 1])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"part {key[:60]!a} cannot be read: {error}") from error
    if f"{part.order}.{part.host}" != key:
        raise Invalid(f"part {key[:60]!a} calls itself {part.order}.{part.host}")
    return part


def failed(key: str, error: CastoffError, order: Order | None = None) -> Order:
    """The order, ended by ``error``; of one that could not be read only its name is left."""
    base = order or Order(id=key, images=())
    return msgspec.structs.replace(base, state=OrderState.FAILED, reason=str(error)[:1000], ended=int(time.time()))


def pinned(order: Order) -> list[str]:
    """The images by what they are now: every host makes the same ready, whatever a tag means meanwhile."""
    names = []
    for image, digest in zip(order.images, order.digests, strict=True):
        reference = parse_reference(image)
        assert isinstance(reference, RegistryReference)
        names.append(f"{reference.name}@{digest}")
    return names
