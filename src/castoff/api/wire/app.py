"""An app as JSON."""

from __future__ import annotations

from typing import Any

from castoff.api.parts import Parts
from castoff.api.ports import App

__all__ = ["app_document", "organization_document"]


def organization_document(parts: Parts) -> dict[str, Any]:
    """The one organization."""
    slug = parts.settings.organization
    return {"id": slug, "internal_numeric_id": 1, "name": slug, "slug": slug}


def app_document(parts: Parts, app: App) -> dict[str, Any]:
    """An app, as fly-go reads one. Its status says whether it has machines: clients take ``deployed`` as usable."""
    machines = len(parts.machines.list(app.name))
    volumes = len(parts.volumes.list(app.name))
    return {
        "id": app.name,
        "internal_numeric_id": app.number,
        "name": app.name,
        "network": app.network,
        "status": "deployed" if machines else "pending",
        "machine_count": machines,
        "volume_count": volumes,
        "organization": organization_document(parts),
        "cname_target": "",
        "app_role": "",
    }
