"""Apps, volumes and secrets over the API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.api_server import Api, running


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A running server."""
    async with running(tmp_path) as found:
        yield found


async def test_apps(api: Api) -> None:
    """Made, listed, shown, and deleted once nothing belongs to them; a taken name is 422 with the word for it."""
    app = await api.ask("POST", "/v1/apps?wait=true", {"name": "fresh", "org_slug": "personal"}, status=201)
    assert app["name"] == "fresh" and isinstance(app["internal_numeric_id"], int)
    assert app["organization"]["slug"] == "personal"
    taken = await api.ask("POST", "/v1/apps", {"app_name": "fresh", "org_slug": "personal"}, status=422)
    assert taken["status"] == "name_taken"
    listed = await api.ask("GET", "/v1/apps?org_slug=personal")
    assert listed["total_apps"] == 3 and {app["name"] for app in listed["apps"]} == {"mine", "other", "fresh"}
    assert [app["name"] for app in (await api.ask("GET", "/v1/apps?org_slug=personal", token="mine"))["apps"]] == ["mine"]
    machine = await api.ask("POST", "/v1/apps/fresh/machines", {"config": {"image": "alpine"}, "skip_launch": True})
    assert (await api.ask("GET", "/v1/apps/fresh"))["machine_count"] == 1
    assert "1 machines" in (await api.ask("DELETE", "/v1/apps/fresh", status=409))["error"]
    await api.ask("DELETE", f"/v1/apps/fresh/machines/{machine['id']}?force=true")
    await api.ask("GET", f"/v1/apps/fresh/machines/{machine['id']}/wait?state=destroyed&timeout=20", status=None)
    await api.ask("DELETE", "/v1/apps/fresh", status=202)
    await api.ask("GET", "/v1/apps/fresh", status=404)
    for name in ("", "Ümlaut", "../etc", "a" * 64, None):
        await api.ask("POST", "/v1/apps", {"name": name}, status=400)


async def test_secrets_have_versions(api: Api) -> None:
    """Whoever asks for a later one than there is, to read or for a machine, is refused until it is there."""
    url, machines = "/v1/apps/mine/secrets", "/v1/apps/mine/machines"
    body = {"config": {"image": "alpine"}, "min_secrets_version": 1, "skip_launch": True}
    assert "have version 0, not 1" in (await api.ask("POST", machines, body, status=412))["error"]
    version = (await api.ask("POST", url, {"values": {"A": "one"}}))["version"]
    assert version == 1
    machine = await api.ask("POST", machines, body)
    for name in ("min_version", "version"):
        await api.ask("GET", f"{url}?{name}=1")
        await api.ask("GET", f"{url}?{name}=2", status=412)
        await api.ask("GET", f"{url}/A?{name}=2", status=412)
        await api.ask("GET", f"{url}?{name}=x", status=400)
    again = {**body, "min_secrets_version": 2}
    await api.ask("POST", f"{machines}/{machine['id']}", again, status=412)
    assert (await api.ask("DELETE", f"{url}/A"))["version"] == 2
    await api.ask("POST", f"{machines}/{machine['id']}", again)


async def test_secrets_go_in_and_come_out_only_where_they_are_asked_for(api: Api) -> None:
    """One, several, removed by null; a version that grows; no value unless it is asked for."""
    url = "/v1/apps/mine/secrets"
    first = await api.ask("POST", url, {"values": {"A": "one", "B": "two"}})
    assert {secret["name"] for secret in first["secrets"]} == {"A", "B"}
    second = await api.ask("POST", f"{url}/C", {"value": "three"}, status=201)
    assert second["version"] > first["version"] and second["name"] == "C"
    assert all("value" not in secret for secret in (await api.ask("GET", url))["secrets"])
    shown = await api.ask("GET", f"{url}?show_secrets=true")
    assert {secret["name"]: secret["value"] for secret in shown["secrets"]} == {"A": "one", "B": "two", "C": "three"}
    assert (await api.ask("GET", f"{url}/A?show_secrets=true"))["value"] == "one"
    await api.ask("POST", url, {"values": {"A": None}})
    await api.ask("GET", f"{url}/A", status=404)
    await api.ask("DELETE", f"{url}/B")
    await api.ask("DELETE", f"{url}/B", status=404)
    assert [secret["name"] for secret in (await api.ask("GET", url))["secrets"]] == ["C"]
    assert (await api.ask("GET", "/v1/apps/other/secrets"))["secrets"] == []
    for values in ({"1": "x"}, {"A=B": "x"}, {"A": 1}, {"A": "\0"}):
        await api.ask("POST", url, {"values": values}, status=400)


async def test_volumes(api: Api) -> None:
    """Made, listed, changed, extended, snapshotted, deleted; a free one has no attachment."""
    url = "/v1/apps/mine/volumes"
    volume = await api.ask("POST", url, {"name": "data", "size_gb": 1, "region": "local", "encrypted": True})
    assert volume["size_gb"] == 1 and volume["host_status"] == "ok" and not volume.get("attached_machine_id")
    one = f"{url}/{volume['id']}"
    assert (await api.ask("PUT", one, {"snapshot_retention": 7}))["snapshot_retention"] == 7
    extended = await api.ask("PUT", f"{one}/extend", {"size_gb": 2})
    assert extended["volume"]["size_gb"] == 2 and extended["needs_restart"] is False
    await api.ask("PUT", f"{one}/extend", {"size_gb": 1}, status=400)
    await api.ask("POST", f"{one}/snapshots")
    assert len(await api.ask("GET", f"{one}/snapshots")) == 1
    assert [found["id"] for found in await api.ask("GET", f"{url}?summary=true")] == [volume["id"]]
    assert [found["id"] for found in (await api.ask("GET", "/v1/orgs/personal/volumes"))["volumes"]] == [volume["id"]]
    await api.ask("GET", f"/v1/apps/other/volumes/{volume['id']}", status=404)
    assert (await api.ask("DELETE", one))["id"] == volume["id"]
    await api.ask("GET", one, status=404)
    for body in ({"name": "x", "size_gb": -1}, {"size_gb": 1}, {"name": "x", "size_gb": "1"}):
        await api.ask("POST", url, body, status=400)
    assert (await api.ask("POST", url, {"name": "x", "size_gb": 0}))["size_gb"] == 1  # as flyctl says that it means none
