"""A volume as JSON."""

from __future__ import annotations

from typing import Any

from castoff.api.answer import moment
from castoff.api.ports import Snapshot, Volume

__all__ = ["gigabytes", "snapshot_document", "volume_document"]

_BLOCK = 4096
_GB = 1024**3


def gigabytes(volume: Volume) -> int:
    """Its size as clients have it, rounded up."""
    return -(-volume.size // _GB)


def volume_document(volume: Volume) -> dict[str, Any]:
    """A volume. One that is free has no ``attached_machine_id``: flyctl takes an empty one for an attachment, and the published
    description does not let it be null."""
    document: dict[str, Any] = {
        "id": volume.id,
        "name": volume.name,
        "state": volume.state,
        "size_gb": gigabytes(volume),
        "region": volume.region,
        "zone": volume.region,
        "encrypted": False,
        "fstype": volume.fstype,
        "type": "local",
        "created_at": moment(volume.created),
        "snapshot_retention": volume.snapshot_retention,
        "auto_backup_enabled": volume.auto_backup,
        "block_size": _BLOCK,
        "blocks": volume.size // _BLOCK,
        "bytes_total": volume.size,
        "host_status": "ok",
    }
    return {**document, "attached_machine_id": volume.machine} if volume.machine else document


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot."""
    return {
        "id": snapshot.id,
        "size": snapshot.size,
        "volume_size": snapshot.volume_size,
        "digest": snapshot.digest,
        "created_at": moment(snapshot.created),
        "status": snapshot.status,
        "retention_days": snapshot.retention_days,
    }
