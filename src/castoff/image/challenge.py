"""WWW-Authenticate: what a registry wants to see (RFC 9110 11.6.1, RFC 6750)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Challenge", "parse_challenges"]

_HEADER_LIMIT = 8192
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"\s*,*\s*({_TOKEN})(?:\s+|\s*$|\s*(?=,))")
_PARAMETER = re.compile(rf"\s*,*\s*({_TOKEN})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|({_TOKEN}))\s*(?=,|$)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in. Scheme and parameter names are lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers, in order; what cannot be read ends its header."""
    return [challenge for header in headers for challenge in _parse(header[:_HEADER_LIMIT])]


def _parse(text: str) -> list[Challenge]:
    found = []
    at = 0
    while scheme := _SCHEME.match(text, at):
        at = scheme.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(text, at):
            name, quoted, bare = parameter.groups()
            parameters.setdefault(name.lower(), bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
            at = parameter.end()
        found.append(Challenge(scheme[1].lower(), parameters))
    return found
