"""URLs as castoff uses them: where a connection goes, and what is asked for there."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urljoin, urlsplit

from castoff.errors import Invalid

__all__ = ["SCHEMES", "Origin", "Scheme", "Url", "is_loopback", "split_host"]

Scheme = Literal["http", "https"]
SCHEMES: tuple[Scheme, Scheme] = ("http", "https")
_PORTS: dict[Scheme, int] = {"http": 80, "https": 443}
_SAFE = "!#$%&'()*+,/:;=?@[]~"  # reserved characters, which keep their meaning, and % of what is quoted already


@dataclass(frozen=True, slots=True)
class Origin:
    """The other end of a connection; credentials belong to one origin (RFC 6454) and go to no other."""

    scheme: Scheme
    host: str
    """A name or an address, IPv6 without brackets."""
    port: int

    @property
    def authority(self) -> str:
        """``host[:port]`` as the Host header and people write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, by its name or address alone."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True)
class Url:
    """An origin and a request target (path and query)."""

    origin: Origin
    target: str

    @classmethod
    def parse(cls, text: str, *, base: Url | None = None) -> Url:
        """Reads an absolute URL, or one relative to ``base``. User names, passwords and fragments are refused or dropped.

        Raises:
            Invalid: It is no http or https URL.
        """
        shown = repr(text[:200])
        try:
            parts = urlsplit(urljoin(str(base), text) if base else text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise Invalid(f"{shown} is not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not host:
            raise Invalid(f"{shown} is not an http or https URL")
        if parts.username is not None or parts.password is not None:
            raise Invalid(f"the URL of {host[:100]} has a user name in it", hint="credentials belong in Docker's config.json")
        scheme: Scheme = "http" if parts.scheme == "http" else "https"
        path = quote(parts.path or "/", safe=_SAFE)
        query = f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""
        return cls(Origin(scheme, _ascii(host), port or _PORTS[scheme]), path + query)

    def __str__(self) -> str:
        return f"{self.origin}{self.target}"


def split_host(text: str) -> tuple[str, int | None]:
    """``host[:port]`` in its parts, IPv6 without its brackets.

    Raises:
        Invalid: It is no host.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Invalid(f"{text[:100]!r} is not a host: {error}") from error
    if not host or parts.path or parts.query or parts.username is not None:
        raise Invalid(f"{text[:100]!r} is not HOST or HOST:PORT")
    return _ascii(host), port


def is_loopback(host: str) -> bool:
    """Whether ``host`` is ``localhost`` or an address of 127.0.0.0/8 or ::1."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 keeps these for the loopback
        return True
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError:
        return False
    if len(packed) == 4:
        return packed[0] == 127
    return packed == bytes(15) + b"\1" or (packed.startswith(bytes(10) + b"\xff\xff") and packed[12] == 127)


def _ascii(host: str) -> str:
    try:
        text = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise Invalid(f"{host[:100]!r} is not a host's name") from error
    if any(character <= " " or character == "\x7f" for character in text):
        raise Invalid(f"{host[:100]!r} is not a host's name")
    return text.lower()
