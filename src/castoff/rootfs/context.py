"""What a provider is given when it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from castoff.artifact.settings import ArtifactSettings
from castoff.hydrate.settings import HydrateSettings
from castoff.image.image import Image
from castoff.image.settings import ImageSettings
from castoff.layers.settings import Limits
from castoff.peers.settings import PeerSettings
from castoff.rootfs.builds import Alone, Builds
from castoff.rootfs.settings import RootfsSettings
from castoff.sources.settings import SourceSettings
from castoff.store.store import Store

__all__ = ["ProviderContext"]


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """The argument of every provider's constructor.

    Attributes:
        store: This host's store.
        settings: The settings of all providers; each looks at its own.
        limits: What converting one layer may cost.
        image: How to reach registries.
        artifact: Where rootfs artifacts are looked for.
        sources: How patiently chunks are fetched.
        hydrate: How the chunks of lazy root filesystems come in.
        peers: Which other hosts are asked before the registry.
        builds: Who converts a layer that is not here.
        converted: Told of an image whose layers had to be converted: its artifact is not there yet.
        notice: Told a line for people where the answer is not what they may expect: an artifact that nobody trusts.
    """

    store: Store
    settings: RootfsSettings = field(default_factory=RootfsSettings)
    limits: Limits = field(default_factory=Limits)
    image: ImageSettings = field(default_factory=ImageSettings)
    artifact: ArtifactSettings = field(default_factory=ArtifactSettings)
    sources: SourceSettings = field(default_factory=SourceSettings)
    hydrate: HydrateSettings = field(default_factory=HydrateSettings)
    peers: PeerSettings = field(default_factory=PeerSettings)
    builds: Builds = field(default_factory=Alone)
    converted: Callable[[Image], None] = lambda image: None
    notice: Callable[[str], None] = lambda line: None

    def only(self, name: str) -> ProviderContext:
        """The same with no other provider than ``name``, which then says why it has nothing rather than leave it to others."""
        return replace(self, settings=msgspec.structs.replace(self.settings, providers=(name,)))
