"""What a provider is given when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec

from castoff.layers.settings import Limits
from castoff.rootfs.settings import RootfsSettings
from castoff.store.store import Store

__all__ = ["ProviderContext"]


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """The argument of every provider's constructor.

    Attributes:
        store: This host's store.
        settings: The settings of all providers; each looks at its own.
        limits: What converting one layer may cost.
    """

    store: Store
    settings: RootfsSettings = field(default_factory=RootfsSettings)
    limits: Limits = field(default_factory=Limits)

    def only(self, name: str) -> ProviderContext:
        """The same with no other provider than ``name``, which then says why it has nothing rather than leave it to others."""
        return replace(self, settings=msgspec.structs.replace(self.settings, providers=(name,)))
