"""Who asks, and what they may: the ``Authorization`` header becomes a :class:`Grant`, and a grant a yes or a no.

Clients send ``Bearer TOKEN`` or ``FlyV1 TOKEN,TOKEN``; each token of a list is tried until one is known. Whoever reaches the
unix socket is the operator: its file mode is the guard. Sources: MACHINES_API, Fly's client tokens/tokens.go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from castoff.errors import Internal, Unauthorized

__all__ = [
    "GRANT_HEADER",
    "OPERATOR",
    "PUBLIC",
    "Authenticator",
    "Forbidden",
    "Grant",
    "authentication",
    "grant_of",
    "is_local",
    "presented_tokens",
    "require",
]

_MOST_TOKENS: Final = 16
"""Of one header: a macaroon list of Fly's has an organization's, an app's and their discharges."""
_LONGEST_TOKEN: Final = 4096
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_SCHEMES: Final = ("bearer", "flyv1")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows.

    Attributes:
        app: The one app that it is for; None: all of them.
        read_only: It changes nothing, and is shown no secret.
        name: The token's own name, the owner of a lease that it takes.
    """

    app: str | None = None
    read_only: bool = False
    name: str = "token"


GRANT_HEADER: Final = "castoff-grant"

OPERATOR: Final = Grant(name="operator")
"""Whoever can open the unix socket."""

_GRANT: Final[Any] = getattr(web, "RequestKey", web.AppKey)("castoff.grant", Grant)
"""Key in a request. aiohttp 3.14 warns of keys that are not of its RequestKey, which older ones have not; those take any."""

PUBLIC: Final = web.AppKey("castoff.public", set)
"""Canonical paths of routes that need no token, as ``request.match_info.route.resource.canonical`` gives them."""


class Authenticator(Protocol):
    """Knows the tokens."""

    async def authenticate(self, presented: str) -> Grant | None:
        """What a token allows; None for one that is unknown, revoked or expired.

        It must take the same time for a token that is nearly right as for any other.
        """
        ...


class Forbidden(Unauthorized):
    """The token is good, and does not allow this."""


def presented_tokens(header: str) -> tuple[str, ...]:
    """The tokens in an ``Authorization`` header; none where it is absent or of another scheme.

    A token without a scheme counts as well, as some clients of Fly's send the value of their variable as it stands.
    """
    scheme, _, rest = header.strip().partition(" ")
    text = rest if scheme.lower() in _SCHEMES else header.strip() if " " not in header.strip() else ""
    tokens = (part.strip() for part in text.split(",", _MOST_TOKENS))
    return tuple(token for token in tokens if token and len(token) <= _LONGEST_TOKEN)[:_MOST_TOKENS]


def authentication(authenticator: Authenticator) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The middleware that lets in whoever may, and tells handlers what they may by :func:`grant_of`."""

    @web.middleware
    async def authenticate(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        resource = request.match_info.route.resource
        if resource is not None and resource.canonical in request.app[PUBLIC]:
            return await handler(request)
        grant = _operators(request) if is_local(request) else await _grant_of(authenticator, request)
        request[_GRANT] = grant
        if grant.read_only and request.method not in _READING and not _only_reads(request):
            raise Forbidden("this token is for reading only")
        app = request.match_info.get("app")
        if app is not None and grant.app is not None and app != grant.app:
            raise Forbidden(f"this token is for the app {grant.app} only")
        return await handler(request)

    return authenticate


async def _grant_of(authenticator: Authenticator, request: web.Request) -> Grant:
    tokens = presented_tokens(request.headers.get("Authorization", ""))
    if not tokens:
        raise Unauthorized("no token was sent", hint="send the header `Authorization: Bearer TOKEN`")
    for token in tokens:
        grant = await authenticator.authenticate(token)
        if grant is not None:
            return grant
    raise Unauthorized("the token is not known, or no longer", hint="make one with `castoff token create`")


def _operators(request: web.Request) -> Grant:
    """Whoever may all may say that he asks for somebody who may less: other hosts do, for whom they let in."""
    lesser = request.headers.get(GRANT_HEADER)
    if lesser is None:
        return OPERATOR
    try:
        return msgspec.json.decode(lesser, type=Grant)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unauthorized(f"the header {GRANT_HEADER} is none: {error}") from error


def is_local(request: web.Request) -> bool:
    """Whether a request came through the unix socket.

    By the address that it came to: a path is a unix socket's, an address and a port are TCP's."""
    transport = request.transport
    return transport is not None and isinstance(transport.get_extra_info("sockname"), str)


def _only_reads(request: web.Request) -> bool:
    """POST where the API means GET."""
    return request.path in ("/graphql", "/v1/platform/placements")


def grant_of(request: web.Request) -> Grant:
    """What the token of a request that was let in allows."""
    grant = request[_GRANT]
    if not isinstance(grant, Grant):
        raise Internal("the request was not authenticated")
    return grant


def require(request: web.Request, app: str | None) -> None:
    """Lets a request through that may touch an app which its path does not name; ``app`` None: all apps.

    Raises:
        Forbidden: Its token is for another one.
    """
    grant = grant_of(request)
    if grant.app is not None and grant.app != app:
        raise Forbidden(f"this token is for the app {grant.app} only")
