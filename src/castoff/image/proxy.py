"""Which proxy a connection goes through, by the environment, as curl and Go's httpproxy read it."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from castoff.errors import Invalid, Unsupported
from castoff.image.url import Origin

__all__ = ["Proxy", "proxy_for"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)
    """The Proxy-Authorization header, where its URL has a user name."""


def proxy_for(origin: Origin, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy for ``origin``, or None: connect directly. Loopback never goes through one.

    Raises:
        Invalid, Unsupported: The environment names a proxy that cannot be used.
    """
    variable = f"{origin.scheme}_proxy"
    names = [variable, variable.upper(), "all_proxy", "ALL_PROXY"]
    if "REQUEST_METHOD" in environment:
        names.remove(variable.upper())  # in a CGI program HTTP_PROXY is the client's `Proxy:` header (httpoxy)
    text = next((environment[name] for name in names if environment.get(name)), "")
    if not text or origin.is_loopback or _excluded(origin, environment.get("no_proxy") or environment.get("NO_PROXY") or ""):
        return None
    return _parse(text if "://" in text else f"http://{text}")


def _parse(text: str) -> Proxy:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Invalid(f"the proxy in the environment is not a URL: {error}", hint="write http://HOST:PORT") from error
    if parts.scheme != "http":
        raise Unsupported(f"a proxy of kind {parts.scheme[:20]!r} is not supported", hint="name an http:// proxy in https_proxy")
    if not host:
        raise Invalid("the proxy in the environment has no host", hint="write http://HOST:PORT")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(pair.encode()).decode()}"
    return Proxy(host, port or 80, authorization)


def _excluded(origin: Origin, rules: str) -> bool:
    return any(_matches(origin, rule.strip().lower()) for rule in rules.split(",") if rule.strip())


def _matches(origin: Origin, rule: str) -> bool:
    if rule == "*":
        return True
    if "/" in rule:
        return _in_network(origin.host, rule)
    host, colon, port = rule.rpartition(":")
    if colon and port.isdecimal() and "]" not in port and (":" not in host or host.endswith("]")):
        if int(port) != origin.port:
            return False
        rule = host
    rule = rule.strip("[]")
    if rule.startswith((".", "*.")):
        return origin.host.endswith(rule.removeprefix("*"))
    return origin.host == rule or origin.host.endswith(f".{rule}")


def _in_network(host: str, rule: str) -> bool:
    import ipaddress  # 5 ms that only a no_proxy with networks pays

    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False
