"""What clients send, read strictly: bodies, queries, durations, signals, tokens."""

from __future__ import annotations

import pytest

from castoff.api.auth import presented_tokens
from castoff.api.body import decode, duration
from castoff.api.errors import Refusal, error_document, status_of
from castoff.api.limits import Rates, client_of
from castoff.api.wire.requests import MachineBody, SecretsBody, StopBody
from castoff.api.wire.signals import parse_signal
from castoff.errors import CastoffError, Invalid, LimitExceeded, NoSpace, NotFound, Unsupported


def test_a_body_tells_the_field_that_is_wrong() -> None:
    """A wrong type names the field that has it."""
    with pytest.raises(Invalid, match=r"lease_ttl"):
        decode(b'{"config": {"image": "a"}, "lease_ttl": "soon"}', MachineBody)
    with pytest.raises(Invalid, match="config"):
        decode(b"{}", MachineBody)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b'{"config": 1e999}',
        b'{"config": {"a": "\\ud800"}}',
        b'{"config": ' * 100_000,
        b"[" * 500_000,
        b'{"config":{"a":' + b"[" * 200_000,
    ],
)
def test_what_is_no_body_is_refused(data: bytes) -> None:
    """Neither broken JSON, nor another type, nor a nesting that no parser survives, is more than invalid."""
    with pytest.raises(Invalid):
        decode(data, MachineBody)


def test_unknown_fields_are_kept_in_the_configuration_and_passed_over_beside_it() -> None:
    """A newer client's fields harm nothing, and its configuration comes back as it was."""
    body = decode(b'{"config": {"image": "a", "new": {"x": [1]}}, "newer": 1}', MachineBody)
    assert body.config == {"image": "a", "new": {"x": [1]}}


def test_no_body_is_an_empty_one() -> None:
    """Clients post without a body where every field may be absent."""
    assert decode(b"", StopBody) == StopBody()
    assert decode(b'{"values": {"A": null}}', SecretsBody).values == {"A": None}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0s", None),
        ("0", None),
        (0, None),
        ("10s", 10.0),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        (5_000_000_000, 5.0),
        ("3µs", 3e-6),
    ],
)
def test_durations_are_gos(value: str | int | None, seconds: float | None) -> None:
    """A string as Go writes one, or nanoseconds; zero means none."""
    assert duration(value, "timeout") == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "value", ["10", "s", "-1s", "1 s", "1e3s", -5, True, "9" * 60 + "h", float("nan"), float("inf"), [], "1d"]
)
def test_what_is_no_duration_is_refused(value: object) -> None:
    """Everything else names its field."""
    with pytest.raises(Invalid, match="timeout"):
        duration(value, "timeout")


@pytest.mark.parametrize(("value", "number"), [("SIGTERM", 15), ("term", 15), (9, 9), ("9", 9), ("", None), (None, None)])
def test_signals_have_names_and_numbers(value: str | int | None, number: int | None) -> None:
    """The description names them, fly-go numbers them."""
    assert parse_signal(value) == number


@pytest.mark.parametrize("value", ["SIGNOT", 0, -9, 65, 10**30, "٣"])
def test_there_is_no_other_signal(value: str | int) -> None:
    """No signal is invalid, not the server's failure."""
    with pytest.raises(Invalid, match="signal"):
        parse_signal(value)


@pytest.mark.parametrize(
    ("header", "tokens"),
    [
        ("Bearer abc", ("abc",)),
        ("bearer  abc ", ("abc",)),
        ("FlyV1 fm2_a,fm2_b, c", ("fm2_a", "fm2_b", "c")),
        ("abc", ("abc",)),
        ("Basic abc", ()),
        ("Bearer", ()),
        ("", ()),
        ("Bearer " + "x" * 5000, ()),
    ],
)
def test_tokens_of_a_header(header: str, tokens: tuple[str, ...]) -> None:
    """Both of Fly's schemes, and a list."""
    assert presented_tokens(header) == tokens


def test_a_header_with_many_tokens_is_cut() -> None:
    """No header makes the server look up thousands."""
    assert len(presented_tokens("FlyV1 " + ",".join("t" * 3 for _ in range(3000)))) <= 16


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Invalid("x"), 400),
        (NotFound("x"), 404),
        (Unsupported("x"), 501),
        (NoSpace("/x", needed=2, available=1), 507),
        (LimitExceeded("x", limit=1, setting="y"), 413),
        (Refusal("x", http=429, word="resource_exhausted", retry_after=1), 429),
    ],
)
def test_errors_have_statuses(error: CastoffError, status: int) -> None:
    """One table maps codes to HTTP; ``status`` in the body is a word that the published description has."""
    assert status_of(error) == status
    document = error_document(error)
    assert document["status"] in ("unknown", "insufficient_capacity", "name_taken")
    assert document["error"] and document["code"]
    assert document.get("message", document["error"]).startswith(document["error"])


def test_a_client_has_its_burst_and_then_its_rate() -> None:
    """A bucket is emptied by a burst and fills with time; another client's is its own."""
    now = 0.0
    rates = Rates(10.0, 3, clock=lambda: now)
    assert [rates.take("a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert rates.take("a") == pytest.approx(0.1)
    assert rates.take("b") == 0.0
    now = 0.11
    assert rates.take("a") == 0.0
    assert rates.take("a") > 0.0


def test_clients_that_are_quiet_longest_are_forgotten() -> None:
    """The table of clients is bounded."""
    rates = Rates(0.001, 1, clock=lambda: 0.0)
    for number in range(10_000):
        rates.take(str(number))
    assert rates.take("9999") > 0.0
    assert rates.take("0") == 0.0


def test_one_host_of_ipv6_is_one_client() -> None:
    """It has a whole /64 to send from."""
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:2")
    assert client_of("2001:db8::1") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:127.0.0.1") == "127.0.0.1"
    assert client_of("fe80::1%eth0") == client_of("fe80::2%eth1")
