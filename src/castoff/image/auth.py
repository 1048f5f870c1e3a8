"""Authorization at one registry: basic, or bearer tokens from the realm that the registry names.

Sources: distribution's spec/auth (token.md, oauth.md, scope.md). A token is kept for its scope until shortly before it
expires, and fetched once however many layers wait for it.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import msgspec

from castoff.errors import Unauthorized, Unavailable
from castoff.image.challenge import Challenge, parse_challenges
from castoff.image.credentials import Credentials, Keyring
from castoff.image.exchange import Request, exchange, explain
from castoff.image.manifest import decode_json
from castoff.image.retry import Backoff
from castoff.image.settings import ImageSettings
from castoff.image.transport import Transport
from castoff.image.url import Origin, Url

__all__ = ["Authorizer"]

_TOKEN_LIMIT = 64 << 10
_SCOPE_LIMIT = 1024
_SHORTEST_LIFE = 60.0  # seconds; token.md: no less, for clients of before expires_in


@dataclass(frozen=True, slots=True)
class _Pass:
    header: str = field(repr=False)
    expires: float


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


class Authorizer:
    """What to show to one registry for one scope.

    Args:
        host: The registry as the reference names it, under which its credentials are kept.
        scope: The scope to ask for where the registry names none, ``repository:NAME:pull``; or ``:pull,push``, which is asked
            for besides what the registry names: it names ``pull`` alone when it is first asked for something to read.
    """

    def __init__(self, host: str, scope: str, keyring: Keyring, transport: Transport, settings: ImageSettings) -> None:
        self._host = host
        self._scope = scope
        self._keyring = keyring
        self._transport = transport
        self._settings = settings
        self._pass: _Pass | None = None
        self._lock = asyncio.Lock()

    @property
    def expires(self) -> float:
        """When the present header ends, in ``time.monotonic()``'s seconds; in the past where there is none."""
        return self._pass.expires if self._pass else float("-inf")

    def header(self) -> str | None:
        """The Authorization header that is known to work; None before the registry asked for one."""
        if self._pass is None or time.monotonic() >= self.expires:
            return None
        return self._pass.header

    async def renew(self, origin: Origin, challenges: list[str], refused: str | None) -> str:
        """A new header, after ``origin`` answered 401.

        Args:
            origin: The registry.
            challenges: Its WWW-Authenticate headers.
            refused: The header that was refused; another task may have renewed it meanwhile.

        Raises:
            Unauthorized: There are no credentials, or they are refused.
            Unavailable: The realm does not answer.
        """
        async with self._lock:
            current = self.header()
            if current is not None and current != refused:
                return current
            self._pass = await self._answer(origin, parse_challenges(challenges))
            return self._pass.header

    async def _answer(self, origin: Origin, challenges: list[Challenge]) -> _Pass:
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if "bearer" in by_scheme:
            return await self._bearer(origin, by_scheme["bearer"])
        if "basic" not in by_scheme:
            schemes = ", ".join(by_scheme)[:100] or "nothing"
            raise Unauthorized(f"{self._host} asks for {schemes} and castoff knows Basic and Bearer")
        credentials = await self._keyring.find(self._host)
        if credentials is None:
            raise Unauthorized(f"{self._host} wants a user name and a password", hint=f"docker login {self._host}")
        return _Pass(_basic(credentials), float("inf"))

    async def _bearer(self, origin: Origin, challenge: Challenge) -> _Pass:
        credentials = await self._keyring.find(self._host)
        if credentials is not None and credentials.registry_token:
            return _Pass(f"Bearer {_checked(self._host, credentials.registry_token)}", float("inf"))
        realm = Url.parse(challenge.parameters.get("realm", ""))
        self._check_realm(origin, realm.origin)
        asked = time.monotonic()
        answer = await self._fetch(self._token_request(realm, challenge, credentials), credentials)
        token = _checked(str(realm.origin), answer.token or answer.access_token or "")
        life = max(answer.expires_in or 0.0, _SHORTEST_LIFE)
        return _Pass(f"Bearer {token}", asked + life - min(10.0, life / 10))

    def _check_realm(self, registry: Origin, realm: Origin) -> None:
        what = f"{self._host} sends us to {realm} for a token"
        if realm.scheme == "http" and registry.scheme == "https":
            raise Unauthorized(
                f"{what}, which is plain HTTP", hint="credentials are not sent in clear; the registry is misconfigured"
            )
        if realm.is_loopback and not registry.is_loopback:
            raise Unauthorized(f"{what}, which is this host itself", hint="no registry elsewhere has business there; refused")

    def _token_request(self, realm: Url, challenge: Challenge, credentials: Credentials | None) -> Request:
        fields: dict[str, Any] = {"scope": self._scopes(challenge)}
        if "service" in challenge.parameters:
            fields["service"] = challenge.parameters["service"]
        if credentials is not None and credentials.identity_token:
            fields |= {"grant_type": "refresh_token", "client_id": "castoff", "refresh_token": credentials.identity_token}
            fields["scope"] = " ".join(fields["scope"])  # oauth.md: one field; token.md: as many as there are
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return Request("POST", realm, headers, urlencode(fields).encode())
        target = f"{realm.target}{'&' if '?' in realm.target else '?'}{urlencode(fields, doseq=True)}"
        return Request("GET", Url(realm.origin, target), authorization=_basic(credentials) if credentials else None)

    def _scopes(self, challenge: Challenge) -> list[str]:
        named = challenge.parameters.get("scope", "")[:_SCOPE_LIMIT].split()
        if not named:
            return [self._scope]
        if not self._scope.endswith("push"):
            return named
        own = self._scope.rpartition(":")[0] + ":"
        return [self._scope, *(scope for scope in named if not scope.startswith(own))]

    async def _fetch(self, request: Request, credentials: Credentials | None) -> _TokenAnswer:
        backoff = Backoff(self._settings)
        async with await exchange(self._transport, request, backoff, self._settings) as response:
            if response.status == 200:
                return decode_json(f"the token of {request.url.origin}", await response.read(_TOKEN_LIMIT), _TokenAnswer)
            text = await explain(response)
        if response.status not in (400, 401, 403):
            raise Unavailable(f"{request.url.origin} gives no token: {text}")
        who = f"the credentials of {credentials.username or 'this host'}" if credentials else "anonymous access"
        raise Unauthorized(f"{request.url.origin} refuses {who} for {self._host}: {text}", hint=f"docker login {self._host}")


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}"
    return f"Basic {b64encode(pair.encode()).decode()}"


def _checked(whose: str, token: str) -> str:
    """The token, if it can stand in a header: anything else could end the header and begin another."""
    if not token or not all("!" <= character <= "~" for character in token):
        raise Unauthorized(f"{whose} gives a token that is none", hint="docker login again, or tell the registry's operator")
    return token
