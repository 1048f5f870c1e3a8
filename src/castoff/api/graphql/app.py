"""An app and its organization as GraphQL has them; lists that a castoff has nothing for are empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from castoff.api.answer import moment
from castoff.api.auth import Grant
from castoff.api.graphql.execute import Json, Resolver
from castoff.api.parts import Parts
from castoff.api.ports import App, Release
from castoff.api.wire.app import app_document
from castoff.api.wire.image import check_image, is_local
from castoff.errors import NotFound
from castoff.lifecycle.model import Machine

__all__ = ["app_fields", "organization_fields"]

_NONE: Final[Mapping[str, Any]] = {"nodes": [], "edges": [], "totalCount": 0}
_RELEASES: Final = 25


def organization_fields(parts: Parts) -> dict[str, Any]:
    """The one organization."""
    slug = parts.settings.organization
    return {
        "id": slug,
        "internalNumericId": "1",
        "slug": slug,
        "rawSlug": slug,
        "name": slug,
        "type": "PERSONAL",
        "paidPlan": True,
        "billable": True,
        "billingStatus": "CURRENT",
        "viewerRole": "admin",
        "remoteBuilderImage": "",
        "remoteBuilderApp": None,
        "members": _NONE,
        "wireGuardPeers": _NONE,
        "limitedAccessTokens": _NONE,
        "addOns": _NONE,
    }


def app_fields(parts: Parts, grant: Grant, name: str) -> dict[str, Any]:
    """An app. flyctl looks for the words "Could not find App" to offer that it be made.

    Raises:
        NotFound: There is none, as far as ``grant`` reaches.
    """
    if grant.app is not None and grant.app != name:
        raise NotFound("Could not find App")
    try:
        found = parts.apps.get(name)
    except NotFound:
        raise NotFound("Could not find App") from None
    document = app_document(parts, found)
    return {
        "id": found.name,
        "internalNumericId": found.number,
        "name": found.name,
        "hostname": "",
        "cnameTarget": "",
        "deployed": document["status"] == "deployed",
        "network": found.network,
        "status": document["status"],
        "appUrl": "",
        "platformVersion": "machines",
        "organization": organization_fields(parts),
        "role": None,
        "sharedIpAddress": "",
        "hostIssues": _NONE,
        "egressIpAddresses": _NONE,
        "ipAddresses": _NONE,
        "certificates": _NONE,
        "limitedAccessTokens": _NONE,
        "services": [],
        **_resolvers(parts, grant, found),
    }


def _resolvers(parts: Parts, grant: Grant, app: App) -> dict[str, Resolver]:
    """What is looked up only where it is asked for."""

    async def image(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        return await _image(parts, grant, str(arguments.get("ref") or ""))

    async def current(_: Mapping[str, Any]) -> dict[str, Any] | None:
        release = await parts.releases.current(app.name)
        return None if release is None else _release(release)

    async def releases(_: Mapping[str, Any]) -> dict[str, Any]:
        return {"nodes": [_release(release) for release in await parts.releases.list(app.name, limit=_RELEASES)]}

    async def version(_: Mapping[str, Any]) -> int:
        release = await parts.releases.current(app.name)
        return 0 if release is None else release.version

    async def config(_: Mapping[str, Any]) -> dict[str, Any]:
        release = await parts.releases.current(app.name)
        return {"definition": Json({} if release is None else release.definition)}

    async def secrets(_: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = await parts.secrets.list(app.name)
        return [{"name": secret.name, "digest": secret.digest, "createdAt": moment(secret.created)} for secret in found]

    async def machines(_: Mapping[str, Any]) -> dict[str, Any]:
        return {"nodes": [_machine(machine) for machine in parts.machines.list(app.name)]}

    return {
        "image": image,
        "currentRelease": current,
        "currentReleaseUnprocessed": current,
        "releases": releases,
        "releasesUnprocessed": releases,
        "version": version,
        "config": config,
        "secrets": secrets,
        "machines": machines,
    }


def _machine(machine: Machine) -> dict[str, Any]:
    return {
        "id": machine.id,
        "name": machine.name,
        "state": machine.state.value,
        "region": machine.region,
        "config": Json(dict(machine.document)),
        "createdAt": moment(machine.created),
        "app": {"id": machine.app, "name": machine.app},
        "ips": _NONE,
        "egressIpAddresses": _NONE,
        "host": {"id": machine.region},
    }


def _release(release: Release) -> dict[str, Any]:
    return {
        "id": release.id,
        "version": release.version,
        "stable": release.status == "complete",
        "inProgress": release.in_progress,
        "reason": "",
        "description": "Release",
        "status": release.status,
        "deploymentStrategy": release.strategy,
        "imageRef": release.image,
        "configDefinition": Json(release.definition),
        "evaluationId": "",
        "user": {"id": release.owner, "name": release.owner, "email": release.owner},
        "createdAt": moment(release.created),
    }


async def _image(parts: Parts, grant: Grant, reference: str) -> dict[str, Any] | None:
    """null says to flyctl that there is no such image; whatever else went wrong it shall show. It puts the digest behind the
    reference, where there is one: an image on the host's disk is known by its path alone."""
    check_image(reference, grant, parts.settings.rootfs_directories)
    try:
        image = await parts.images.describe(reference)
    except NotFound:
        return None
    local = is_local(reference)
    return {
        "id": image.digest,
        "digest": "" if local else image.digest,
        "ref": reference if local else image.reference,
        "compressedSize": str(image.size),
        "compressedSizeFull": str(image.size),
        "manifest": Json({"annotations": dict(image.annotations)}),
    }
