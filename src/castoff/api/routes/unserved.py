"""What the description has, or flyctl wants, and this server has not: each answers 501 and says why."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from aiohttp import web

from castoff.api.errors import NotServed

__all__ = ["ROUTES", "UNSERVED"]

_APP = "/v1/apps/{app}"
_NO_PROXY = "castoff has no proxy in front of machines, so apps have no addresses and no certificates of their own"
_NO_KEYS = "castoff keeps no keys for apps; secrets can be set"
_NO_MEMORY = "castoff does not change the memory of a machine that runs; update its config.guest.memory_mb"
_NO_BUILDS = "castoff builds no images: build it elsewhere, push it to a registry, and deploy it with --image"
_NO_MACAROONS = "castoff's tokens are opaque; make one with `castoff token create`"

UNSERVED: Final = MappingProxyType(
    {
        ("GET", f"{_APP}/machines/{{id}}/memory"): _NO_MEMORY,
        ("PUT", f"{_APP}/machines/{{id}}/memory"): _NO_MEMORY,
        ("POST", f"{_APP}/machines/{{id}}/memory/reclaim"): _NO_MEMORY,
        ("POST", f"{_APP}/ip_assignments"): _NO_PROXY,
        ("DELETE", f"{_APP}/ip_assignments/{{ip}}"): _NO_PROXY,
        ("GET", f"{_APP}/certificates"): _NO_PROXY,
        ("POST", f"{_APP}/certificates/acme"): _NO_PROXY,
        ("POST", f"{_APP}/certificates/custom"): _NO_PROXY,
        ("GET", f"{_APP}/certificates/{{hostname}}"): _NO_PROXY,
        ("DELETE", f"{_APP}/certificates/{{hostname}}"): _NO_PROXY,
        ("DELETE", f"{_APP}/certificates/{{hostname}}/acme"): _NO_PROXY,
        ("DELETE", f"{_APP}/certificates/{{hostname}}/custom"): _NO_PROXY,
        ("POST", f"{_APP}/certificates/{{hostname}}/check"): _NO_PROXY,
        ("POST", f"{_APP}/deploy_token"): _NO_MACAROONS,
        ("GET", f"{_APP}/secretkeys"): _NO_KEYS,
        ("GET", f"{_APP}/secretkeys/{{name}}"): _NO_KEYS,
        ("POST", f"{_APP}/secretkeys/{{name}}"): _NO_KEYS,
        ("DELETE", f"{_APP}/secretkeys/{{name}}"): _NO_KEYS,
        ("POST", f"{_APP}/secretkeys/{{name}}/decrypt"): _NO_KEYS,
        ("POST", f"{_APP}/secretkeys/{{name}}/encrypt"): _NO_KEYS,
        ("POST", f"{_APP}/secretkeys/{{name}}/generate"): _NO_KEYS,
        ("POST", f"{_APP}/secretkeys/{{name}}/sign"): _NO_KEYS,
        ("POST", f"{_APP}/secretkeys/{{name}}/verify"): _NO_KEYS,
        ("POST", "/api/v1/builds/depot_builder"): _NO_BUILDS,
        ("POST", "/v1/tokens/authenticate"): _NO_MACAROONS,
        ("POST", "/v1/tokens/authorize"): _NO_MACAROONS,
        ("POST", "/v1/tokens/oidc"): "castoff issues no OpenID Connect tokens",
        ("POST", "/v1/tokens/kms"): "castoff has no key management",
    }
)
"""By method and path: why."""


async def _refuse(request: web.Request) -> web.Response:
    resource = request.match_info.route.resource
    path = "" if resource is None else resource.canonical
    raise NotServed(UNSERVED[request.method, path], hint="docs/compatibility.md has what is served")


ROUTES: Final = tuple(web.route(method, path, _refuse) for method, path in UNSERVED)
