"""Settings of rootfs artifacts: where they are looked for, and whether this host makes them."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["ArtifactSettings"]


class ArtifactSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where rootfs artifacts are found and put. Whose count is no setting: ``castoff trust`` keeps that."""

    repositories: tuple[str, ...] = ()
    """Central repositories (``HOST[:PORT]/PATH``) where artifacts of any image are looked for, after the image's own
    repository; the first is also where ``publish = "auto"`` puts them (without one: beside the image)."""
    publish: Literal["auto", "never"] = "never"
    """``auto``: a host that had to convert an image publishes its artifact, so that no other host converts it again.
    ``castoff publish`` works either way."""
    find_timeout: float = 10.0
    """Seconds that looking for an artifact may take; after that a create goes on without one."""
