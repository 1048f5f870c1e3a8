"""Every route that is served, or refused on purpose; docs/compatibility.md is checked against it."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from castoff.api.routes import (
    apps,
    files,
    flyctl,
    leases,
    machines,
    observe,
    organizations,
    ports,
    releases,
    secrets,
    unserved,
    volumes,
)

__all__ = ["ROUTES"]

ROUTES: Final[tuple[web.RouteDef, ...]] = (
    *apps.ROUTES,
    *machines.ROUTES,
    *files.ROUTES,
    *ports.ROUTES,
    *observe.ROUTES,
    *leases.ROUTES,
    *volumes.ROUTES,
    *secrets.ROUTES,
    *organizations.ROUTES,
    *flyctl.ROUTES,
    *releases.ROUTES,
    *unserved.ROUTES,
)
