"""Orders as they are written and read: choices of hosts, hours, and what strangers may have put in their place."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import CastoffError, Invalid, NotFound
from castoff.fleet.orders import Order, OrderState, Part, encode, failed, new_order, pinned, read_order, read_part
from castoff.fleet.selector import Selector, parse_selector
from castoff.fleet.window import parse_window

_WORDS = st.text("abcxyz019-._", min_size=1, max_size=6)


@dataclass(frozen=True)
class Host:
    """A host, as a choice sees it."""

    id: str = "0123456789abcdef"
    name: str = "one"
    region: str = "fra"
    zone: str = "fra1"
    labels: Mapping[str, str] = field(default_factory=dict)


_FIELDS = st.one_of(st.sampled_from(["region", "zone", "host"]), _WORDS.map("label:{}".format))
_SELECTORS = st.builds(
    Selector,
    count=st.integers(0, 10_000),
    terms=st.dictionaries(_FIELDS, st.lists(_WORDS, min_size=1, max_size=3, unique=True).map(tuple), max_size=4).map(
        lambda terms: tuple(sorted(terms.items()))
    ),
)


@given(_SELECTORS)
def test_a_choice_is_read_as_it_is_written(selector: Selector) -> None:
    assert parse_selector(str(selector)) == selector


@given(_SELECTORS, _WORDS, _WORDS, st.dictionaries(_WORDS, _WORDS, max_size=4))
def test_a_choice_is_its_terms(selector: Selector, region: str, name: str, labels: dict[str, str]) -> None:
    """Every field must have one of its values, and the number chooses nobody."""
    host = Host(name=name, region=region, labels=labels)
    facts = {"region": {region}, "zone": {"fra1"}, "host": {name, host.id}} | {f"label:{k}": {v} for k, v in labels.items()}
    expected = all(facts.get(kind, set()) & set(values) for kind, values in selector.terms)
    assert selector.matches(host) == expected


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("all", True),
        ("8", True),
        ("region=fra", True),
        ("region=ams", False),
        ("region=ams,region=fra", True),
        ("region=fra,zone=fra2", False),
        ("host=one", True),
        ("label=disk=nvme", True),
        ("label=disk=ssd", False),
        ("label=rack=", False),
        ("3,label=disk=nvme", True),
    ],
)
def test_choices_as_people_write_them(text: str, matches: bool) -> None:
    assert parse_selector(text).matches(Host(labels={"disk": "nvme"})) is matches


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "8,9", "all,8", "region", "region=", "label=x", "label==x", "colour=red", "٣", "9" * 30]
)
def test_what_chooses_nobody_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_selector(text)


@given(st.text(max_size=40))
def test_any_text_is_a_choice_or_refused(text: str) -> None:
    with contextlib.suppress(Invalid):
        assert parse_selector(str(parse_selector(text))) == parse_selector(text)


_TIMES = st.times().map(lambda time: time.replace(second=0, microsecond=0))
_NOW = st.datetimes(
    min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(timezone(timedelta(hours=2)))
)


@given(_TIMES, _TIMES, _NOW)
def test_hours_open_and_close_when_they_say(start: object, end: object, now: datetime) -> None:
    text = f"{start:%H:%M}-{end:%H:%M}"
    if start == end:
        with pytest.raises(Invalid):
            parse_window(text)
        return
    window = parse_window(text)
    assert str(window) == text
    if window.is_open(now):
        assert window.opens_in(now) == 0
        left = window.closes_in(now)
        assert 0 < left <= 86400
        assert not window.is_open(now + timedelta(seconds=left))
        assert window.is_open(now + timedelta(seconds=left - 1e-3))
    else:
        assert window.closes_in(now) == 0
        left = window.opens_in(now)
        assert 0 < left <= 86400
        assert window.is_open(now + timedelta(seconds=left))
        assert not window.is_open(now + timedelta(seconds=left - 1e-3))


def test_no_hours_are_all_hours() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    assert parse_window("").opens_in(now) == 0
    assert parse_window("").closes_in(now) == float("inf")


@pytest.mark.parametrize("text", ["1:00-2:00", "24:00-01:00", "01:60-02:00", "01:00", "01:00-02:00\n", "١١:00-12:00"])
def test_what_are_no_hours_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_window(text)


def test_an_order_is_read_as_it_is_written() -> None:
    order = new_order(
        ("app:prod", "app:prod", "r.example/x@sha256:" + 64 * "a"), hosts="8,region=fra", limit=5, window="01:00-05:00"
    )
    assert order.images == ("app:prod", "r.example/x@sha256:" + 64 * "a")
    assert read_order(order.id, encode(order)) == order


def test_what_its_images_are_is_what_every_host_makes_ready() -> None:
    """Also where the tag means something else by then."""
    digest = "sha256:" + 64 * "b"
    order = msgspec.structs.replace(new_order(("localhost:5000/app:prod",)), digests=(digest,))
    assert pinned(order) == [f"localhost:5000/app@{digest}"]


_GOOD = {"id": "0123456789ab", "images": ["app:prod"]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"colour": "red"},
        {"images": []},
        {"images": ["app"] * 257},
        {"images": ["a" * 513]},
        {"images": ["oci:/etc"]},
        {"images": ["UPPER CASE"]},
        {"images": ["app@sha256:" + 64 * "a"], "keep": True},
        {"images": "app"},
        {"id": "ba9876543210"},
        {"id": "../../../etc"},
        {"hosts": "colour=red"},
        {"window": "soon"},
        {"limit": -1},
        {"limit": 1e300},
        {"state": "perhaps"},
        {"state": "open", "digests": ["sha256:1", "sha256:2"]},
        {"state": "open", "digests": ["sha256:1"]},
        {"version": 0},
        {"reason": "r" * 1001},
    ],
)
def test_a_wrong_order_is_refused_and_ends_as_failed(wrong: dict[str, object]) -> None:
    """With the reason, under its own name, and such that it can be read."""
    with pytest.raises(Invalid) as refused:
        read_order("0123456789ab", json.dumps(_GOOD | wrong).encode())
    ended = failed("0123456789ab", refused.value)
    assert read_order("0123456789ab", encode(ended)) == ended
    assert (ended.state, ended.reason) == (OrderState.FAILED, str(refused.value)[:1000])


def test_a_later_version_s_order_is_left_to_others() -> None:
    with pytest.raises(NotFound, match="later castoff"):
        read_order("0123456789ab", json.dumps(_GOOD | {"version": 2, "colour": "red"}).encode())


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_rubbish_is_refused(data: bytes) -> None:
    for read in (read_order, read_part):
        with pytest.raises(CastoffError):
            read("0123456789ab", data)


def test_deep_rubbish_is_refused() -> None:
    with pytest.raises(Invalid):
        read_order("0123456789ab", b"[" * 100_000)
    with pytest.raises(Invalid):
        read_order("0123456789ab", b" " * (1 << 20))


def test_a_part_is_its_host_s_own() -> None:
    part = Part(order="0123456789ab", host="0123456789abcdef")
    assert read_part("0123456789ab.0123456789abcdef", encode(part)) == part
    with pytest.raises(Invalid):
        read_part("0123456789ab.fedcba9876543210", encode(part))


def test_an_order_can_be_read_by_order_s_own_limits() -> None:
    """The longest order that is accepted fits into what is read."""
    images = tuple(f"localhost:5000/{'a' * 200}/{n:04}:{'t' * 127}" for n in range(256))
    order = new_order(images, hosts=",".join(f"host={n:04}" for n in range(90)))
    full = msgspec.structs.replace(order, state=OrderState.OPEN, digests=("sha256:" + 64 * "a",) * 256, reason="r" * 1000)
    assert read_order(order.id, encode(full)) == full
    assert isinstance(full, Order)
