"""Platforms: this host's, how names are normalised, and which of an index's entries fits best.

The rules are containerd's (https://github.com/containerd/platforms): aliases of architectures, arm64 is v8 and arm is v7
where no variant is said, and a processor runs what was built for older variants of its kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from castoff.image.image import Platform

__all__ = ["fitness", "host_platform", "listing", "normalise", "parse_platform"]

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
}
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


def host_platform() -> Platform:
    """The platform of machines on this host."""
    return normalise(Platform("linux", os.uname().machine))


def parse_platform(text: str) -> Platform:
    """Reads ``os/architecture[/variant]`` or an architecture alone; whatever is named, exists or not."""
    parts = text.lower().split("/", 2)
    if len(parts) == 1:
        return normalise(Platform("linux", parts[0]))
    return normalise(Platform(*parts))


def normalise(platform: Platform) -> Platform:
    """The platform under its usual names, without a variant that goes without saying."""
    architecture, variant = _ARCHITECTURES.get(platform.architecture.lower(), (platform.architecture.lower(), ""))
    variant = platform.variant.lower() or variant
    if variant.isdigit():
        variant = f"v{variant}"  # arm64/8 is written by some builders
    if variant == _DEFAULT_VARIANT.get(architecture):
        variant = ""
    return Platform(platform.os.lower(), architecture, variant)


def fitness(offered: Platform, asked: Platform) -> int | None:
    """How well an image for ``offered`` serves ``asked``: 0 is exact, less is older; None: it does not run."""
    offered, asked = normalise(offered), normalise(asked)
    if (offered.os, offered.architecture) != (asked.os, asked.architecture):
        return None
    if offered.variant == asked.variant:
        return 0
    ours, theirs = _level(asked), _level(offered)
    if ours is None or theirs is None or theirs > ours:
        return None
    return theirs - ours


def listing(platforms: Iterable[Platform]) -> str:
    """Platforms as an error's text names them."""
    names = list(dict.fromkeys(str(platform) for platform in platforms))
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _level(platform: Platform) -> int | None:
    variant = platform.variant or _DEFAULT_VARIANT.get(platform.architecture, "")
    return int(variant[1:]) if variant[:1] == "v" and variant[1:].isdecimal() and len(variant) <= 4 else None
