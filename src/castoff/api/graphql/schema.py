"""What can be asked by GraphQL: the fields that flyctl reads before and after it talks to the Machines API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from castoff.api.auth import Grant
from castoff.api.parts import Parts
from castoff.api.wire.app import app_document
from castoff.api.wire.image import is_local
from castoff.errors import NotFound

__all__ = ["query_root"]


def query_root(parts: Parts, grant: Grant) -> dict[str, Any]:
    """The root fields of a query, for whoever has ``grant``; each is looked up only where it is asked for."""

    async def app(arguments: Mapping[str, Any]) -> dict[str, Any]:
        name = arguments.get("name") or arguments.get("internalId") or ""
        return _app(parts, grant, str(name))

    async def machine(arguments: Mapping[str, Any]) -> dict[str, Any]:
        found = parts.machines.get(grant.app, str(arguments.get("machineId", "")))
        return {
            "id": found.id,
            "name": found.name,
            "state": found.state.value,
            "app": {"id": found.app, "name": found.app, "organization": _organization(parts)},
        }

    async def organizations(_: Mapping[str, Any]) -> dict[str, Any]:
        return {"nodes": [_organization(parts)]}

    async def organization(arguments: Mapping[str, Any]) -> dict[str, Any]:
        if arguments.get("slug") not in (None, parts.settings.organization):
            raise NotFound("Could not find Organization")
        return _organization(parts)

    async def nearest_region(_: Mapping[str, Any]) -> dict[str, Any]:
        return _region(parts)

    async def platform(_: Mapping[str, Any]) -> dict[str, Any]:
        return {"requestRegion": parts.settings.region, "regions": [_region(parts)]}

    return {
        "app": app,
        "machine": machine,
        "organizations": organizations,
        "organization": organization,
        "nearestRegion": nearest_region,
        "platform": platform,
    }


def _organization(parts: Parts) -> dict[str, Any]:
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
        "viewerRole": "admin",
    }


def _region(parts: Parts) -> dict[str, Any]:
    region = parts.settings.region
    return {"code": region, "name": region, "gatewayAvailable": False, "deprecated": False}


def _app(parts: Parts, grant: Grant, name: str) -> dict[str, Any]:
    """An app. flyctl looks for the words "Could not find App" to offer that it be made."""
    try:
        found = parts.apps.get(name)
    except NotFound:
        raise NotFound("Could not find App") from None
    if grant.app is not None and grant.app != name:
        raise NotFound("Could not find App")
    document = app_document(parts, found)

    async def image(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        return await _image(parts, str(arguments.get("ref") or ""))

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
        "organization": _organization(parts),
        "postgresAppRole": None,
        "role": None,
        "image": image,
        "hostIssues": {"nodes": []},
        "egressIpAddresses": {"nodes": []},
        "ipAddresses": {"nodes": []},
    }


async def _image(parts: Parts, reference: str) -> dict[str, Any] | None:
    """null says to flyctl that there is no such image; whatever else went wrong it shall show."""
    if is_local(reference):
        raise NotFound("an image on the host's disk has no place in a registry")
    try:
        image = await parts.images.describe(reference)
    except NotFound:
        return None
    return {
        "id": image.digest,
        "digest": image.digest,
        "ref": image.reference,
        "compressedSize": str(image.size),
        "compressedSizeFull": str(image.size),
        "manifest": {"annotations": dict(image.annotations)},
    }
