"""The small parts of talking to a registry: challenges, URLs, proxies, mirrors, delays."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from castoff.errors import Invalid, Unavailable, Unsupported
from castoff.image.challenge import Challenge, parse_challenges
from castoff.image.connect import connect_tcp
from castoff.image.endpoint import endpoints_of
from castoff.image.proxy import Proxy, proxy_for
from castoff.image.reference import RegistryReference, parse_reference
from castoff.image.retry import Backoff, parse_retry_after
from castoff.image.settings import ImageSettings
from castoff.image.url import Origin, Url, is_loopback, split_host


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a/b?c",service="s, t",scope="repository:x:pull,push"',
            [("bearer", {"realm": "https://a/b?c", "service": "s, t", "scope": "repository:x:pull,push"})],
        ),
        ("Basic", [("basic", {})]),
        ("Basic, Bearer realm=x", [("basic", {}), ("bearer", {"realm": "x"})]),
        ('BASIC Realm="a \\"quoted\\" one"', [("basic", {"realm": 'a "quoted" one'})]),
        ('Bearer realm = "x" , error="invalid_token"', [("bearer", {"realm": "x", "error": "invalid_token"})]),
        ("Negotiate abc==", [("negotiate", {})]),
        ("", []),
        ("=", []),
    ],
)
def test_challenges_as_servers_write_them(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    """Several in one header, quoted strings with commas, spaces anywhere."""
    found = parse_challenges([header])
    assert found[: len(expected)] == [Challenge(scheme, parameters) for scheme, parameters in expected]


def test_a_hostile_challenge_costs_no_time() -> None:
    """Linear in what is read of it, which is bounded."""
    assert len(parse_challenges(['Bearer a="' + "\\" * 100_000, "a," * 100_000, " " * 100_000])) < 10_000


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("x.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("128.0.0.1", False),
        ("localhost.example", False),
        ("::2", False),
        ("127.0.0.1.example", False),
    ],
)
def test_what_is_loopback(host: str, expected: bool) -> None:
    """By name or address alone, without asking a resolver."""
    assert is_loopback(host) is expected


def test_urls_are_made_safe() -> None:
    """Relative to others, with ports that go without saying, quoted, without fragments."""
    base = Url.parse("https://Host.example/v2/x")
    assert str(base) == "https://host.example/v2/x"
    assert str(Url.parse("/a b?c=d e#f", base=base)) == "https://host.example/a%20b?c=d%20e"
    assert str(Url.parse("//other:444/%20", base=base)) == "https://other:444/%20"
    assert Url.parse("http://[::1]:5000/").origin == Origin("http", "::1", 5000)
    assert Url.parse("http://[::1]/").origin.authority == "[::1]"
    assert Url.parse("https://bücher.example/").origin.host == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "http://",
        "http://a:b/",
        "http://a:99999/",
        "http://[::1/",
        "http://a b/",
        "http://u@a/",
        "gopher://a/",
        "http://\x7f/",
    ],
)
def test_urls_that_are_none(text: str) -> None:
    """Refused with their text, whatever is wrong."""
    with pytest.raises(Invalid):
        Url.parse(text)


def test_hosts_with_and_without_ports() -> None:
    """IPv6 in brackets."""
    assert split_host("a:5") == ("a", 5)
    assert split_host("[::1]:5") == ("::1", 5)
    assert split_host("A.example") == ("a.example", None)
    for text in ("", "a/b", "u@a", "a:x"):
        with pytest.raises(Invalid):
            split_host(text)


def origin(text: str) -> Origin:
    return Url.parse(text).origin


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, "http://a/", None),
        ({"http_proxy": "http://p:3128"}, "http://a/", Proxy("p", 3128)),
        ({"http_proxy": "p:3128"}, "http://a/", Proxy("p", 3128)),
        ({"HTTP_PROXY": "http://p"}, "http://a/", Proxy("p", 80)),
        ({"HTTP_PROXY": "http://p", "REQUEST_METHOD": "GET"}, "http://a/", None),
        ({"http_proxy": "http://p"}, "https://a/", None),
        ({"HTTPS_PROXY": "http://p"}, "https://a/", Proxy("p", 80)),
        ({"all_proxy": "http://p"}, "https://a/", Proxy("p", 80)),
        ({"http_proxy": "http://p"}, "http://127.0.0.1:5000/", None),
        ({"http_proxy": "http://p"}, "http://localhost/", None),
        ({"http_proxy": "http://p", "no_proxy": "*"}, "http://a/", None),
        ({"http_proxy": "http://p", "no_proxy": "b, a.example"}, "http://x.a.example/", None),
        ({"http_proxy": "http://p", "no_proxy": ".a.example"}, "http://a.example/", Proxy("p", 80)),
        ({"http_proxy": "http://p", "no_proxy": "*.a.example"}, "http://x.a.example/", None),
        ({"http_proxy": "http://p", "no_proxy": "a:81"}, "http://a/", Proxy("p", 80)),
        ({"http_proxy": "http://p", "no_proxy": "a:80"}, "http://a/", None),
        ({"http_proxy": "http://p", "NO_PROXY": "10.0.0.0/8"}, "http://10.2.3.4/", None),
        ({"http_proxy": "http://p", "no_proxy": "10.0.0.0/8,nonsense/x"}, "http://a/", Proxy("p", 80)),
        ({"http_proxy": "http://p", "no_proxy": "[2001:db8::1]:80"}, "http://[2001:db8::1]/", None),
        ({"http_proxy": "http://p", "no_proxy": "2001:db8::1"}, "http://[2001:db8::1]/", None),
        ({"http_proxy": "http://p", "no_proxy": "aa"}, "http://a/", Proxy("p", 80)),
    ],
)
def test_which_proxy(environment: dict[str, str], url: str, expected: Proxy | None) -> None:
    """The environment's variables, as curl and Go read them."""
    assert proxy_for(origin(url), environment) == expected


def test_a_proxys_credentials_are_not_shown() -> None:
    """They are sent, and in no text."""
    proxy = proxy_for(origin("http://a/"), {"http_proxy": "http://u%40x:p%3Aw@p:1"})
    assert proxy is not None
    assert proxy.authorization == "Basic dUB4OnA6dw=="
    assert "dUB4" not in repr(proxy)


@pytest.mark.parametrize(
    ("text", "kind"), [("socks5://p", Unsupported), ("https://p", Unsupported), ("http://", Invalid), ("http://p:x", Invalid)]
)
def test_proxies_that_cannot_be_used(text: str, kind: type[Exception]) -> None:
    """A clear word rather than a connection past the proxy."""
    with pytest.raises(kind):
        proxy_for(origin("http://a/"), {"http_proxy": text})


def endpoints(text: str, **settings: object) -> list[tuple[str, str | None, str]]:
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    found = endpoints_of(reference, ImageSettings(**settings))  # type: ignore[arg-type]
    return [(str(row.origin(row.scheme or "http")), row.scheme, row.repository) for row in found]


def test_endpoints_and_their_schemes() -> None:
    """TLS everywhere, but on loopback where it is asked for, and for hosts that the settings name."""
    assert endpoints("alpine") == [("https://registry-1.docker.io", "https", "library/alpine")]
    assert endpoints("localhost:5000/x") == [("http://localhost:5000", None, "x")]
    assert endpoints("[::1]:5000/x") == [("http://[::1]:5000", None, "x")]
    assert endpoints("localhost:443/x") == [("https://localhost", "https", "x")]
    assert endpoints("r.example:5000/x", insecure_registries=("r.example:5000",)) == [("http://r.example:5000", "http", "x")]
    assert endpoints("r.example:5000/x", insecure_registries=("r.example",)) == [("https://r.example:5000", "https", "x")]


def test_mirrors_and_their_prefixes() -> None:
    """In order, with a path that goes before the repository's name, with a scheme or without."""
    mirrors = {"docker.io": ("m.example/proxy/hub", "http://10.0.0.1:5000", "https://127.0.0.1:1")}
    assert endpoints("alpine", mirrors=mirrors) == [
        ("https://m.example", "https", "proxy/hub/library/alpine"),
        ("http://10.0.0.1:5000", "http", "library/alpine"),
        ("https://127.0.0.1:1", "https", "library/alpine"),
        ("https://registry-1.docker.io", "https", "library/alpine"),
    ]
    assert len(endpoints("ghcr.io/x", mirrors=mirrors)) == 1
    for bad in ("", "ftp://x", "://x", "u@x", "x:y"):
        with pytest.raises(Invalid, match="mirror"):
            endpoints("alpine", mirrors={"docker.io": (bad,)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 5.0),
        (" 120 ", 120.0),
        ("Tue, 24 Nov 2026 10:00:30 GMT", 30.0),
        ("Tue, 24 Nov 2026 09:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        (None, None),
        ("-1", None),
        ("9" * 30, None),
        ("²", None),
    ],
)
def test_retry_after(text: str | None, expected: float | None) -> None:
    """Seconds or a date; nonsense is nothing."""
    assert parse_retry_after(text, datetime(2026, 11, 24, 10, 0, 0, tzinfo=UTC)) == expected


async def test_delays_are_random_under_a_doubling_ceiling() -> None:
    """Full jitter; the count ends; progress begins it anew."""
    settings = ImageSettings(retries=4, retry_delay=0.001, retry_delay_limit=0.003)
    failure = Unavailable("x")
    highest = Backoff(settings, chance=lambda: 0.999)
    delays = []
    for _ in range(4):
        await highest.wait(failure)
        delays.append(highest.delay())
    assert delays == pytest.approx([0.001, 0.002, 0.003, 0.003], rel=0.01)
    with pytest.raises(Unavailable):
        await highest.wait(failure)
    highest.progressed()
    await highest.wait(failure)
    assert Backoff(settings, chance=lambda: 0.0).delay() == 0.0


async def test_a_dead_address_does_not_hold_up_a_live_one() -> None:
    """`localhost` is ::1 and 127.0.0.1, and the server listens on one of them."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        sock = await connect_tcp("localhost", server.sockets[0].getsockname()[1], 2.0)
        sock.close()


async def test_a_name_that_does_not_exist() -> None:
    """Says so (.invalid never does, RFC 6761)."""
    with pytest.raises(Unavailable, match="cannot be looked up: it is no host's name"):
        await connect_tcp(f"{'a' * 64}.invalid", 80, 5)
    with pytest.raises(Unavailable, match=r"name castoff-test\.invalid cannot be looked up"):
        await connect_tcp("castoff-test.invalid", 80, 20.0)
