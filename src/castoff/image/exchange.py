"""One request and what it takes to have an answer: redirects, retries, and no credentials to strangers."""

from __future__ import annotations

import http
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from castoff.errors import CastoffError, Unavailable
from castoff.image.connect import Broken
from castoff.image.retry import Backoff, parse_retry_after
from castoff.image.settings import ImageSettings
from castoff.image.transport import Response, Transport
from castoff.image.url import Origin, Url

__all__ = ["Request", "exchange", "explain", "follow"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_REDIRECTS = 5
_EXPLANATION_LIMIT = 64 << 10


@dataclass(frozen=True, slots=True)
class Request:
    """A request. ``authorization`` goes to the origin of ``url`` and to no other, wherever redirects lead."""

    method: str
    url: Url
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] | None = field(default=None, repr=False)
    """An iterable is gone through again at each try; its Content-Length is in ``headers``."""
    authorization: str | None = field(default=None, repr=False)


async def exchange(
    transport: Transport, request: Request, backoff: Backoff, settings: ImageSettings, *, first: Response | None = None
) -> Response:
    """The answer to a request; the caller closes it.

    Broken connections and answers that say "later" are tried again as long as ``backoff`` allows; any other answer,
    good or bad, is returned.

    Args:
        first: The answer to the first try, where it was made already.

    Raises:
        Unavailable: There was none, or it led astray.
    """
    while True:
        failure: CastoffError
        retry_after = None
        try:
            response = first or await follow(transport, request, settings)
        except Broken as error:
            failure = error
        else:
            first = None
            if response.status not in _TRANSIENT:
                return response
            retry_after = parse_retry_after(response.headers.get("Retry-After"))
            failure = Unavailable(f"{response.url.origin} answers {await explain(response)}", hint="try again later")
        await backoff.wait(failure, retry_after)


async def follow(transport: Transport, request: Request, settings: ImageSettings) -> Response:
    """One try: the answer at the end of any redirects; raises Broken where there is none."""
    url = request.url
    for _ in range(_MAX_REDIRECTS + 1):
        headers = {"User-Agent": "castoff", "Accept-Encoding": "identity", **request.headers}
        if request.authorization and url.origin == request.url.origin:
            headers["Authorization"] = request.authorization
        response = await transport.send(request.method, url, headers, request.body)
        location = response.headers.get("Location")
        # A POST has credentials in its body: it is answered where it was sent, or not at all.
        if response.status not in _REDIRECTS or location is None or request.method not in ("GET", "HEAD"):
            return response
        response.close()
        target = Url.parse(location, base=url)
        _check_redirect(request.url.origin, url.origin, target.origin, settings)
        url = target
    raise Unavailable(f"{request.url.origin} redirects more than {_MAX_REDIRECTS} times", hint="the registry is misconfigured")


def _check_redirect(first: Origin, source: Origin, target: Origin, settings: ImageSettings) -> None:
    what = f"{source} redirects to {target}"
    if target.is_loopback and not first.is_loopback:
        raise Unavailable(f"{what}, which is this host itself", hint="no registry elsewhere has business there; refused")
    if source.scheme == "https" and target.scheme == "http" and target.authority not in settings.insecure_registries:
        raise Unavailable(
            f"{what}, from TLS to plain HTTP", hint="list that host in `image.insecure_registries` if you trust the network"
        )


class _Problem(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Problems(msgspec.Struct):
    errors: list[_Problem] | None = None


async def explain(response: Response) -> str:
    """The status and what the registry says about it, for an error's text; closes the response."""
    try:
        phrase = http.HTTPStatus(response.status).phrase
    except ValueError:
        phrase = ""
    text = f"{response.status} {phrase}".strip()
    async with response:
        try:
            problems = msgspec.json.decode(await response.read(_EXPLANATION_LIMIT), type=_Problems).errors or []
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Broken):
            return text  # the status alone has to do: the body is an extra, and often HTML
    details = "; ".join(f"{row.code} {row.message}".strip() for row in problems[:3])[:300]
    return f"{text} ({details})" if details else text
