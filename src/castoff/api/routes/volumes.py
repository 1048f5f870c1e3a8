"""Volumes: /v1/apps/{app}/volumes."""

from __future__ import annotations

import logging
from typing import Final

from aiohttp import web

from castoff.api import body
from castoff.api.answer import json_answer
from castoff.api.parts import PARTS
from castoff.api.wire.requests import ExtendBody, VolumeBody, VolumeChange
from castoff.api.wire.volume import snapshot_document, volume_document

__all__ = ["ROUTES"]

_LOG: Final = logging.getLogger(__name__)

_ALL: Final = "/v1/apps/{app}/volumes"
_ONE: Final = "/v1/apps/{app}/volumes/{id}"
_GB: Final = 1024**3
_RETENTION: Final = 5
"""Days for which snapshots are kept, as Fly's own."""


def _names(request: web.Request) -> tuple[str, str]:
    return request.match_info["app"], request.match_info["id"]


async def list_volumes(request: web.Request) -> web.Response:
    """GET /volumes."""
    parts = request.app[PARTS]
    app = request.match_info["app"]
    parts.apps.get(app)
    body.flag(request, "summary")  # a volume is all summary
    return json_answer([volume_document(volume) for volume in parts.volumes.list(app)])


async def create_volume(request: web.Request) -> web.Response:
    """POST /volumes."""
    parts = request.app[PARTS]
    app = request.match_info["app"]
    wanted = await body.read(request, VolumeBody)
    parts.apps.get(app)
    volume = await parts.volumes.create(
        app,
        wanted.name,
        size=wanted.size_gb * _GB if wanted.size_gb else None,
        fstype=wanted.fstype or "ext4",
        snapshot=wanted.snapshot_id or None,
        source=wanted.source_volume_id or None,
        snapshot_retention=wanted.snapshot_retention or _RETENTION,
        auto_backup=True if wanted.auto_backup_enabled is None else wanted.auto_backup_enabled,
    )
    return json_answer(volume_document(volume))


async def show_volume(request: web.Request) -> web.Response:
    """GET /volumes/{id}."""
    return json_answer(volume_document(request.app[PARTS].volumes.get(*_names(request))))


async def change_volume(request: web.Request) -> web.Response:
    """PUT /volumes/{id}."""
    wanted = await body.read(request, VolumeChange)
    volume = await request.app[PARTS].volumes.update(
        *_names(request), snapshot_retention=wanted.snapshot_retention, auto_backup=wanted.auto_backup_enabled
    )
    return json_answer(volume_document(volume))


async def delete_volume(request: web.Request) -> web.Response:
    """DELETE /volumes/{id}."""
    return json_answer(volume_document(await request.app[PARTS].volumes.delete(*_names(request))))


async def extend_volume(request: web.Request) -> web.Response:
    """PUT /volumes/{id}/extend: a running machine sees the new size at once, or when it starts again."""
    wanted = await body.read(request, ExtendBody)
    extended = await request.app[PARTS].attached.extend(*_names(request), wanted.size_gb * _GB)
    if extended.why:
        _LOG.info("volume %s grows when its machine starts again: %s", extended.volume.id, extended.why)
    return json_answer({"volume": volume_document(extended.volume), "needs_restart": extended.needs_restart})


async def list_snapshots(request: web.Request) -> web.Response:
    """GET /volumes/{id}/snapshots."""
    found = request.app[PARTS].volumes.snapshots(*_names(request))
    return json_answer([snapshot_document(snapshot) for snapshot in found])


async def take_snapshot(request: web.Request) -> web.Response:
    """POST /volumes/{id}/snapshots."""
    return json_answer(snapshot_document(await request.app[PARTS].attached.snapshot(*_names(request))))


ROUTES: Final = (
    web.get(_ALL, list_volumes),
    web.post(_ALL, create_volume),
    web.get(_ONE, show_volume),
    web.put(_ONE, change_volume),
    web.delete(_ONE, delete_volume),
    web.put(f"{_ONE}/extend", extend_volume),
    web.get(f"{_ONE}/snapshots", list_snapshots),
    web.post(f"{_ONE}/snapshots", take_snapshot),
)
