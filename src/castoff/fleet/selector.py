"""Which hosts an order is for: ``all``, ``8``, ``region=fra``, ``label=disk=nvme``, or several of them with commas between.

What is said of one thing twice is an alternative (``region=fra,region=ams``); of different things all must hold. A number is
how many hosts of those that match, and no more, do it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from castoff.errors import Invalid

__all__ = ["Chosen", "Selector", "parse_selector"]

MOST_HOSTS: Final = 10_000
_MOST_TEXT: Final = 1000
_FIELDS: Final = ("region", "zone", "host")


class Chosen(Protocol):
    """What is known of a host when it is chosen, or not."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def region(self) -> str: ...
    @property
    def zone(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Selector:
    """A choice of hosts.

    Attributes:
        count: How many hosts of those that match; 0: all of them.
        terms: For each field (``label:KEY`` for a label) the values of which a host must have one.
    """

    count: int = 0
    terms: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def matches(self, host: Chosen) -> bool:
        """Whether the order is for a host, as far as ``count`` leaves room."""
        return all(_holds(host, field, values) for field, values in self.terms)

    def __str__(self) -> str:
        words = [str(self.count)] if self.count else []
        for field, values in self.terms:
            words += [f"{field.replace('label:', 'label=', 1)}={value}" for value in values]
        return ",".join(words) or "all"


def parse_selector(text: str) -> Selector:
    """Reads a choice of hosts.

    Raises:
        Invalid: It is none.
    """
    if len(text) > _MOST_TEXT:
        raise Invalid(f"a choice of hosts has at most {_MOST_TEXT} characters")
    count, terms = 0, dict[str, tuple[str, ...]]()
    words = text.split(",")
    for word in words:
        field, _, value = word.partition("=")
        if word == "all":
            continue
        if word.isascii() and word.isdigit():
            if count or not 0 < int(word[:9]) <= MOST_HOSTS or len(word) > 9:
                raise Invalid(f"{word[:20]!r} is no number of hosts", hint=f"one number from 1 to {MOST_HOSTS}")
            count = int(word)
            continue
        if field == "label":
            key, found, value = value.partition("=")
            field = f"label:{key}" if key and found else ""
        elif field not in _FIELDS or not value:
            field = ""
        if not field or not value.isprintable():
            hint = "all, a number, region=R, zone=Z, host=NAME, label=KEY=VALUE, or several with commas between"
            raise Invalid(f"{word[:80]!r} chooses no hosts", hint=hint)
        terms[field] = tuple(dict.fromkeys((*terms.get(field, ()), value)))
    if "all" in words and (count or terms):
        raise Invalid(f"{text[:80]!r}: all hosts, or some", hint="leave `all` away")
    return Selector(count, tuple(sorted(terms.items())))


def _holds(host: Chosen, field: str, values: tuple[str, ...]) -> bool:
    kind, _, key = field.partition(":")
    if kind == "label":
        return host.labels.get(key) in values
    if kind == "host":
        return host.id in values or host.name in values
    return (host.region if kind == "region" else host.zone) in values
