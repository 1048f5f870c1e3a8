"""What can be asked by GraphQL: the fields that flyctl reads before and after it talks to the Machines API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from castoff.api.auth import Grant
from castoff.api.graphql.app import app_fields, organization_fields
from castoff.api.parts import Parts
from castoff.api.regions import region_names
from castoff.errors import NotFound

__all__ = ["query_root"]


def query_root(parts: Parts, grant: Grant) -> dict[str, Any]:
    """The root fields of a query, for whoever has ``grant``; each is looked up only where it is asked for."""

    async def app(arguments: Mapping[str, Any]) -> dict[str, Any]:
        name = arguments.get("name") or arguments.get("internalId") or ""
        return app_fields(parts, grant, str(name))

    async def apps(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """All on one page, whatever page is asked for. None has a role: those with one are databases and builders of Fly's."""
        wanted = arguments.get("organizationId")
        there = parts.apps.list() if wanted in (None, parts.settings.organization) and not arguments.get("role") else ()
        found = [app_fields(parts, grant, app.name) for app in there if grant.app in (None, app.name)]
        return {"nodes": found, "pageInfo": {"hasNextPage": False, "endCursor": ""}}

    async def can_perform_bluegreen(_: Mapping[str, Any]) -> bool:
        """What flyctl does by it is cordon, uncordon and destroy."""
        return True

    async def add_ons(_: Mapping[str, Any]) -> dict[str, Any]:
        return {"nodes": []}

    async def latest_image_details(arguments: Mapping[str, Any]) -> None:
        """Newer images of Fly's own, of which there are none here: flyctl looks for these words, and says no more about it."""
        raise NotFound(f"Unknown repository: {str(arguments.get('image', ''))[:200]}")

    async def machine(arguments: Mapping[str, Any]) -> dict[str, Any]:
        found = parts.machines.get(grant.app, str(arguments.get("machineId", "")))
        return {
            "id": found.id,
            "name": found.name,
            "state": found.state.value,
            "app": {"id": found.app, "name": found.app, "organization": organization_fields(parts)},
        }

    async def organizations(_: Mapping[str, Any]) -> dict[str, Any]:
        return {"nodes": [organization_fields(parts)]}

    async def organization(arguments: Mapping[str, Any]) -> dict[str, Any]:
        if arguments.get("slug") not in (None, parts.settings.organization):
            raise NotFound("Could not find Organization")
        return organization_fields(parts)

    async def nearest_region(_: Mapping[str, Any]) -> dict[str, Any]:
        return _region(parts.settings.region)

    async def viewer(_: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": grant.name, "name": grant.name, "email": grant.name, "enablePaidHobby": False}

    async def platform(_: Mapping[str, Any]) -> dict[str, Any]:
        own = parts.settings.region
        return {"requestRegion": own, "regions": [_region(code) for code in region_names(own, parts.room)]}

    return {
        "app": app,
        "apps": apps,
        "addOns": add_ons,
        "canPerformBluegreenDeployment": can_perform_bluegreen,
        "latestImageDetails": latest_image_details,
        "machine": machine,
        "organizations": organizations,
        "organization": organization,
        "nearestRegion": nearest_region,
        "platform": platform,
        "viewer": viewer,
    }


def _region(region: str) -> dict[str, Any]:
    return {
        "code": region,
        "name": region,
        "latitude": 0.0,
        "longitude": 0.0,
        "gatewayAvailable": False,
        "requiresPaidPlan": False,
        "deprecated": False,
    }
