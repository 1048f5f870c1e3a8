"""Asks several providers in order: itself a provider.

A provider that answers None leaves the request to the next one; one that raises ends it, since what it found is broken and
another's answer would hide that. A provider is imported and made when it is first asked: where an earlier one has the
rootfs, the later ones cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from castoff import timeline
from castoff.errors import CastoffError, NotFound
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.plugins import load_plugin
from castoff.rootfs.provider import Rootfs, RootfsProvider, RootfsRequest

__all__ = ["ProviderChain", "configured_chain"]


@dataclass(frozen=True, slots=True)
class _Link:
    name: str
    make: Callable[[], RootfsProvider]


class ProviderChain:
    """A provider made of others.

    Args:
        links: (name, maker) of each, in the order in which they are asked; a maker is called once, when it is needed.
    """

    name = "chain"

    def __init__(self, links: Sequence[tuple[str, Callable[[], RootfsProvider]]]) -> None:
        self._links = tuple(_Link(name, make) for name, make in links)
        self._made: dict[str, RootfsProvider] = {}

    def provider(self, name: str) -> RootfsProvider:
        """The provider of that name: whoever destroys a machine asks it to release.

        Raises:
            NotFound: It is not in the chain.
        """
        for link in self._links:
            if link.name == name:
                return self._make(link)
        raise NotFound(f"no provider {name!r} is configured", hint="add it to rootfs.providers")

    async def locate(self, request: RootfsRequest) -> Rootfs | None:
        """The first answer.

        Raises:
            CastoffError: What a provider raised, of the same class, with its name before the message.
        """
        for link in self._links:
            try:
                with timeline.step("rootfs.chain", provider=link.name):
                    found = await self._make(link).locate(request)
            except CastoffError as error:
                error.what = f"{link.name}: {error.what}"  # the same class and data, saying who had it
                raise
            if found is not None:
                return found
        return None

    def _make(self, link: _Link) -> RootfsProvider:
        if link.name not in self._made:
            self._made[link.name] = link.make()
        return self._made[link.name]


def configured_chain(context: ProviderContext) -> ProviderChain:
    """The chain that the settings say, of providers found through entry points."""

    def maker(name: str) -> Callable[[], RootfsProvider]:
        return lambda: load_plugin(name)(context)

    return ProviderChain([(name, maker(name)) for name in context.settings.providers])
