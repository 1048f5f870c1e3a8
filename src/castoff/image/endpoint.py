"""Where a registry's images are asked for: its mirrors, in order, then the registry itself."""

from __future__ import annotations

from dataclasses import dataclass

from castoff.errors import CastoffError, Invalid
from castoff.image.reference import RegistryReference
from castoff.image.settings import ImageSettings
from castoff.image.url import Origin, Scheme, is_loopback, split_host

__all__ = ["Endpoint", "endpoints_of"]

_HUB = "registry-1.docker.io"  # the host behind the name docker.io


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry that may have the image.

    Attributes:
        host: The registry's name, under which credentials for it are kept.
        address: The host and port that are connected to.
        repository: The repository's name there.
        scheme: http or https; None: on loopback, where either is common, what answers decides.
        is_mirror: Whether another endpoint follows.
    """

    host: str
    address: tuple[str, int | None]
    repository: str
    scheme: Scheme | None
    is_mirror: bool

    def origin(self, scheme: Scheme) -> Origin:
        """Its origin under ``scheme``."""
        host, port = self.address
        return Origin(scheme, host, port or (443 if scheme == "https" else 80))


def endpoints_of(reference: RegistryReference, settings: ImageSettings) -> tuple[Endpoint, ...]:
    """The endpoints for a reference, in the order in which they are asked.

    Raises:
        Invalid: A mirror in the settings is no host.
    """
    mirrors = [_mirror(text, reference, settings) for text in settings.mirrors.get(reference.registry, ())]
    host = _HUB if reference.registry == "docker.io" else reference.registry
    address = split_host(host)
    scheme = _scheme(reference.registry, address, settings)
    return (*mirrors, Endpoint(reference.registry, address, reference.repository, scheme, is_mirror=False))


def _mirror(text: str, reference: RegistryReference, settings: ImageSettings) -> Endpoint:
    scheme_text, separator, rest = text.rpartition("://")
    host, _, prefix = rest.rstrip("/").partition("/")
    if scheme_text not in ("", "http", "https") or (separator and not scheme_text):
        raise Invalid(f"the mirror {text[:100]!r} has an unknown scheme", hint="write [http[s]://]HOST[:PORT][/PREFIX]")
    try:
        address = split_host(host)
    except CastoffError as error:
        raise Invalid(f"the mirror {text[:100]!r} of {reference.registry} cannot be read: {error.what}") from error
    scheme: Scheme | None = "http" if scheme_text == "http" else "https" if scheme_text else _scheme(host, address, settings)
    repository = f"{prefix}/{reference.repository}" if prefix else reference.repository
    return Endpoint(host, address, repository, scheme, is_mirror=True)


def _scheme(host: str, address: tuple[str, int | None], settings: ImageSettings) -> Scheme | None:
    if host in settings.insecure_registries:
        return "http"
    return None if is_loopback(address[0]) and address[1] != 443 else "https"
