"""Mutations: of secrets, which older clients (fly-admin) change by GraphQL alone. What a client wants by any other is told why it
is not there, or how else it is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from castoff.api.auth import Forbidden, Grant
from castoff.api.parts import Parts
from castoff.errors import Invalid, NotFound, Unsupported

__all__ = ["mutation_root", "refused_mutation"]

T = TypeVar("T")

_NO_NETWORK: Final = (
    "castoff has no WireGuard network, which `fly ssh`, `fly proxy` and `fly console` go through",
    "`fly machine exec` runs a command in a machine",
)
_NO_PROXY: Final = ("castoff has no proxy in front of machines, so apps have no addresses and no certificates of their own", "")
_NO_MACAROONS: Final = ("castoff's tokens are opaque", "make one with `castoff token create`")
_REASONS: Final = (
    ("wireguard", _NO_NETWORK),
    ("issuecertificate", _NO_NETWORK),
    ("ipaddress", _NO_PROXY),
    ("certificate", _NO_PROXY),
    ("token", _NO_MACAROONS),
    ("organization", ("this host has one organization, of its configuration", "`agent.organization` names it")),
    ("remotebuilder", ("castoff builds no images", "name one of a registry")),
    ("addon", ("castoff has no extensions", "")),
    ("postgres", ("castoff has no managed databases", "")),
)
"""What the mutation's name has in it, and what is said of it; the first that fits."""


def refused_mutation(name: str) -> Unsupported:
    """Why a mutation is not served.

    Args:
        name: Its root field's.
    """
    for part, (what, hint) in _REASONS:
        if part in name.lower():
            return Unsupported(what, hint=hint)
    return Unsupported(f"castoff's GraphQL does not change things by {name[:64]!r}", hint="the Machines API does")


class _Secret(msgspec.Struct, frozen=True):
    key: str
    value: str


class _SetSecrets(msgspec.Struct, frozen=True, rename="camel"):
    app_id: str
    secrets: tuple[_Secret, ...]
    replace_all: bool | None = None


class _UnsetSecrets(msgspec.Struct, frozen=True, rename="camel"):
    app_id: str
    keys: tuple[str, ...]


def mutation_root(parts: Parts, grant: Grant) -> dict[str, Any]:
    """The root fields of a mutation, for whoever has ``grant``. Neither deploys: machines see secrets when they start the next
    time, and ``release`` is null, as of an app that was never deployed."""

    async def set_secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
        wanted = _input(arguments, _SetSecrets)
        app = _app(parts, grant, wanted.app_id)
        others = await parts.secrets.list(app) if wanted.replace_all else ()
        gone: dict[str, str | None] = {secret.name: None for secret in others}
        await parts.secrets.set(app, gone | {secret.key: secret.value for secret in wanted.secrets})
        return {"release": None, "app": {"id": app, "name": app}}

    async def unset_secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
        wanted = _input(arguments, _UnsetSecrets)
        app = _app(parts, grant, wanted.app_id)
        await parts.secrets.set(app, dict.fromkeys(wanted.keys))
        return {"release": None, "app": {"id": app, "name": app}}

    return {"setSecrets": set_secrets, "unsetSecrets": unset_secrets}


def _input(arguments: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(arguments.get("input"), kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"input: {error}") from error


def _app(parts: Parts, grant: Grant, name: str) -> str:
    if grant.app not in (None, name):
        raise NotFound("Could not find App")
    if grant.read_only:
        raise Forbidden("this token is for reading only")
    try:
        return parts.apps.get(name).name
    except NotFound:
        raise NotFound("Could not find App") from None
