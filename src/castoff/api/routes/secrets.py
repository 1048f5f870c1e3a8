"""Secrets of an app. Values go in; they come out for tokens that may write, and only where they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from castoff.api import body
from castoff.api.answer import json_answer, moment
from castoff.api.auth import Forbidden, grant_of
from castoff.api.parts import PARTS
from castoff.api.ports import Secret, Secrets
from castoff.api.wire.requests import SecretBody, SecretsBody
from castoff.lifecycle.model import PreconditionFailed

__all__ = ["ROUTES"]

_ALL: Final = "/v1/apps/{app}/secrets"
_ONE: Final = "/v1/apps/{app}/secrets/{name}"


def _document(secret: Secret, values: Mapping[str, str]) -> dict[str, Any]:
    document = {
        "name": secret.name,
        "digest": secret.digest,
        "created_at": moment(secret.created),
        "updated_at": moment(secret.updated),
    }
    return {**document, "value": values[secret.name]} if secret.name in values else document


def _shown(request: web.Request) -> bool:
    wanted = body.flag(request, "show_secrets")
    if wanted and grant_of(request).read_only:
        raise Forbidden("a token for reading only is shown no secret")
    return wanted


async def _check_version(request: web.Request, secrets: Secrets, app: str) -> None:
    """The query's ``min_version``, or ``version``: only the newest is kept, so either is a least one."""
    there = await secrets.version(app)
    for name in ("min_version", "version"):
        least = body.number(request, name, default=0, least=0, most=2**63 - 1)
        if least > there:
            raise PreconditionFailed(
                f"query: {name}: the secrets of app {app} have version {there}, not {least}", hint="set them first"
            )


async def list_secrets(request: web.Request) -> web.Response:
    """GET /secrets."""
    parts = request.app[PARTS]
    app = request.match_info["app"]
    parts.apps.get(app)
    shown = _shown(request)
    await _check_version(request, parts.secrets, app)
    found = await parts.secrets.list(app)
    values = await parts.secrets.values(app) if shown else {}
    return json_answer({"secrets": [_document(secret, values) for secret in found]})


async def set_secrets(request: web.Request) -> web.Response:
    """POST /secrets: null removes one."""
    parts = request.app[PARTS]
    app = request.match_info["app"]
    wanted = await body.read(request, SecretsBody)
    parts.apps.get(app)
    version = await parts.secrets.set(app, wanted.values)
    found = await parts.secrets.list(app)
    changed = [_document(secret, {}) for secret in found if secret.name in wanted.values]
    return json_answer({"secrets": changed, "version": version, "Version": version})


async def show_secret(request: web.Request) -> web.Response:
    """GET /secrets/{name}."""
    parts = request.app[PARTS]
    app, name = request.match_info["app"], request.match_info["name"]
    parts.apps.get(app)
    shown = _shown(request)
    await _check_version(request, parts.secrets, app)
    secret = await parts.secrets.get(app, name)
    values = await parts.secrets.values(app) if shown else {}
    return json_answer(_document(secret, values))


async def set_secret(request: web.Request) -> web.Response:
    """POST /secrets/{name}."""
    parts = request.app[PARTS]
    app, name = request.match_info["app"], request.match_info["name"]
    wanted = await body.read(request, SecretBody)
    parts.apps.get(app)
    version = await parts.secrets.set(app, {name: wanted.value})
    secret = await parts.secrets.get(app, name)
    return json_answer({**_document(secret, {}), "version": version, "Version": version}, status=201)


async def delete_secret(request: web.Request) -> web.Response:
    """DELETE /secrets/{name}."""
    parts = request.app[PARTS]
    app, name = request.match_info["app"], request.match_info["name"]
    parts.apps.get(app)
    await parts.secrets.get(app, name)
    version = await parts.secrets.set(app, {name: None})
    return json_answer({"version": version, "Version": version})


ROUTES: Final = (
    web.get(_ALL, list_secrets),
    web.post(_ALL, set_secrets),
    web.get(_ONE, show_secret),
    web.post(_ONE, set_secret),
    web.delete(_ONE, delete_secret),
)
