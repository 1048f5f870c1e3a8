"""References: the text by which a person names an image, as Docker and skopeo read it.

A registry reference is ``[REGISTRY[:PORT]/]REPOSITORY[:TAG][@DIGEST]`` with Docker's defaults (``alpine`` is
``docker.io/library/alpine:latest``). Images on disk are ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]`` and
``docker-archive:FILE[:NAME:TAG]``, each also with ``@DIGEST`` in place of the tag where the format has digests. The grammar
is distribution/reference's (https://pkg.go.dev/github.com/distribution/reference).
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from castoff.errors import Invalid
from castoff.image.digest import Digest

__all__ = ["LayoutKind", "LayoutReference", "Reference", "RegistryReference", "parse_reference"]

LayoutKind = Literal["oci", "oci-archive", "docker-archive"]

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"

_TEXT_LIMIT = 8192
_NAME_LIMIT = 255  # distribution/reference: RepositoryNameTotalLengthMax
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?P<host>{_LABEL}(?:\.{_LABEL})*|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?\Z")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_HEX_ID = re.compile(r"[0-9a-f]{64}\Z")
# Layout tags are annotations: the OCI image spec lets them be whole image names ("ref.name" in annotations.md).
_LAYOUT_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/+-]{0,511}\Z")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """An image in a registry; a digest, where there is one, decides alone, and the tag beside it is decoration."""

    registry: str
    """``host[:port]``, an IPv6 host in brackets; ``docker.io`` for the Docker Hub."""
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """``registry/repository``, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An image on disk."""

    kind: LayoutKind
    path: Path
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        path = os.fsencode(self.path).decode(errors="replace")  # for people, and for records, which are JSON
        return f"{self.kind}:{path}{tag}{digest}"


Reference: TypeAlias = RegistryReference | LayoutReference


def parse_reference(text: str) -> Reference:
    """Reads a reference.

    A path on disk may hold colons: of ``oci:a:b:c`` the longest prefix that exists (``a:b:c``, ``a:b``, ``a``) is the
    path and the rest the tag; where none exists, the path ends at the last colon that no ``/`` follows.

    Raises:
        Invalid: The text is no reference; the message tells which part and why.
    """
    if not text:
        raise Invalid("an image reference is empty", hint="write something like alpine:3 or oci:DIR")
    if len(text) > _TEXT_LIMIT:
        raise Invalid(f"an image reference of {len(text)} characters is too long", hint=f"at most {_TEXT_LIMIT} are read")
    scheme, colon, rest = text.partition(":")
    if colon and scheme in ("oci", "oci-archive", "docker-archive"):
        # A repository may have such a name: then it is written with its registry, docker.io/library/oci:TAG.
        return _parse_layout(scheme, rest)  # type: ignore[arg-type]
    return _parse_registry(text.removeprefix("docker://"))


def _parse_layout(kind: LayoutKind, text: str) -> LayoutReference:
    if "\0" in text:
        raise Invalid(f"the path in {kind}:{text[:100]!r} has a NUL")
    head, at, tail = text.rpartition("@sha256:")
    digest = Digest.parse(f"sha256:{tail}") if at and not _exists(text) else None
    path, tag = _split_path(head if digest else text)
    if not path:
        raise Invalid(f"{kind}:{text} names no path", hint=f"write {kind}:PATH or {kind}:PATH:TAG")
    if tag is not None and _LAYOUT_TAG.match(tag) is None:
        raise Invalid(f"{tag[:100]!r} in {kind}:{text[:200]} is not a tag", hint=f"write {kind}:PATH:TAG")
    return LayoutReference(kind, Path(path), tag, digest)


def _split_path(text: str) -> tuple[str, str | None]:
    cuts = [len(text), *(at for at in range(len(text) - 1, -1, -1) if text[at] == ":")]
    for cut in cuts[:64]:
        if cut and _exists(text[:cut]):
            return text[:cut], text[cut + 1 :] if cut < len(text) else None
    path, colon, tag = text.rpartition(":")
    return (path, tag) if colon and "/" not in tag else (text, None)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a name too long for the kernel, a directory that may not be searched: not there, for this purpose
        return False


@lru_cache(1024)
def _parse_registry(text: str) -> RegistryReference:
    shown = repr(text[:200])
    if text.startswith(("/", ".", "~")):
        raise Invalid(f"{shown} is a path, not an image in a registry", hint=f"write oci:{text[:200]} for an OCI layout on disk")
    if "://" in text:
        raise Invalid(f"{shown} is a URL, not an image reference", hint="leave the scheme out; plain HTTP is a setting")
    if _CONTROL.search(text) or not text.isascii():
        raise Invalid(f"{shown} has a character that no image reference has", hint="letters, digits and . _ - / : @ only")
    rest, at, digest_text = text.partition("@")
    digest = Digest.parse(digest_text) if at else None
    name, tag = _split_tag(rest)
    if tag is not None and _TAG.match(tag) is None:
        raise Invalid(f"{tag[:140]!r} in {shown} is not a tag", hint="up to 128 letters, digits and . _ -, not first . or -")
    registry, repository = _split_registry(name)
    _check_registry(registry, shown)
    _check_repository(repository, f"{registry}/{repository}", shown)
    return RegistryReference(registry, repository, tag if tag or digest else DEFAULT_TAG, digest)


def _split_tag(text: str) -> tuple[str, str | None]:
    name, colon, tag = text.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (text, None)


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and (first.lower() == "localhost" or "." in first or ":" in first):
        registry, repository = first.lower(), rest
    elif slash and first != first.lower():  # no repository has upper case, so it is a host, and stays one as it is
        registry, repository = first, rest
    else:
        registry, repository = DEFAULT_REGISTRY, name
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository


def _check_registry(registry: str, shown: str) -> None:
    match = _REGISTRY.match(registry)
    if match is None or len(registry) > _NAME_LIMIT:
        raise Invalid(f"{registry[:100]!r} in {shown} is not a registry's host", hint="write HOST or HOST:PORT")
    if match["port"] and not 1 <= int(match["port"]) <= 65535:
        raise Invalid(f"port {match['port']} in {shown} does not exist", hint="ports are 1 to 65535")
    if match["ipv6"]:
        try:
            socket.inet_pton(socket.AF_INET6, match["ipv6"])
        except OSError as error:
            raise Invalid(f"[{match['ipv6'][:100]}] in {shown} is not an IPv6 address") from error


def _check_repository(repository: str, name: str, shown: str) -> None:
    if _HEX_ID.match(repository.removeprefix("library/")):
        raise Invalid(f"{shown} is an image id, not a name", hint="write NAME@sha256:DIGEST")
    if _REPOSITORY.match(repository) is None:
        lower = repository.lower()
        hint = f"names are lower case: {lower[:100]}" if _REPOSITORY.match(lower) else "write NAME[/NAME...][:TAG][@DIGEST]"
        raise Invalid(f"{repository[:100]!r} in {shown} is not a repository's name", hint=hint)
    if len(name) > _NAME_LIMIT:
        raise Invalid(f"the name {name[:60]}... has {len(name)} characters", hint=f"at most {_NAME_LIMIT} are allowed")
