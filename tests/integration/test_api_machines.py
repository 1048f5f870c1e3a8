"""The Machines API as its clients use it, over a running server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.api_server import Api, running

from castoff.fakes.launcher import World

MACHINES = "/v1/apps/mine/machines"
CONFIG = {"image": "alpine:3.20", "env": {"A": "1"}, "metadata": {"role": "web"}, "unknown_field": {"kept": [1, None]}}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A running server."""
    async with running(tmp_path) as found:
        yield found


async def created(api: Api, **body: object) -> str:
    """The id of a machine that has started, or was not launched."""
    machine = await api.ask("POST", MACHINES, {"config": CONFIG, **body})
    if not body.get("skip_launch"):
        await api.ask("GET", f"{MACHINES}/{machine['id']}/wait?state=started&timeout=20")
    return str(machine["id"])


async def test_who_waits_for_the_start_of_a_machine_that_fails_is_told(tmp_path: Path) -> None:
    """At once and why, by the one status at which flyctl does not ask again; who waits for the failure as well gets it; a start
    begins anew."""
    world = World()
    world.failing.add("broken")
    async with running(tmp_path, world=world) as api:
        machine = await api.ask("POST", MACHINES, {"config": {"image": "broken", "restart": {"policy": "no"}}})
        one = f"{MACHINES}/{machine['id']}"
        said = await api.ask("GET", f"{one}/wait?state=started&timeout=60", status=400)
        assert "failed to start: broken does not boot" in said["message"]
        assert (await api.ask("GET", f"{one}/wait?state=started&state=failed&timeout=60"))["state"] == "failed"
        assert (await api.ask("GET", f"{one}/wait?state=settled&timeout=60"))["state"] == "failed"
        world.failing.clear()
        await api.ask("POST", f"{one}/start")
        assert (await api.ask("GET", f"{one}/wait?state=started&timeout=60"))["state"] == "started"


async def test_a_machine_is_made_and_waited_for(api: Api) -> None:
    """POST, wait, GET, as flyctl does; what was sent comes back, and Go's clients find what they dereference."""
    machine = await api.ask("POST", MACHINES, {"config": CONFIG, "name": "first", "newer_field": 1})
    assert machine["host_status"] == "ok"
    assert machine["config"] == {"init": {}, **CONFIG}
    assert machine["instance_id"] == machine["version"]
    waited = await api.ask(
        "GET", f"{MACHINES}/{machine['id']}/wait?instance_id={machine['instance_id']}&timeout=20&state=started"
    )
    assert waited["ok"] is True and waited["state"] == "started" and waited["version"] == machine["version"]
    shown = await api.ask("GET", f"{MACHINES}/{machine['id']}")
    assert shown["state"] == "started" and shown["name"] == "first"
    stamps = [event["timestamp"] for event in shown["events"]]
    assert stamps == sorted(stamps, reverse=True) and shown["events"][-1]["type"] == "launch"
    assert shown["image_ref"]["repository"] == "library/alpine" and shown["image_ref"]["tag"] == "3.20"
    assert shown["image_ref"]["digest"].startswith("sha256:")


async def test_lists_are_filtered(api: Api) -> None:
    """By state, region and metadata; a summary has no configuration."""
    launched = await created(api)
    waiting = await created(api, skip_launch=True)
    assert {machine["id"] for machine in await api.ask("GET", MACHINES)} == {launched, waiting}
    assert [machine["id"] for machine in await api.ask("GET", f"{MACHINES}?state=created,stopped")] == [waiting]
    assert len(await api.ask("GET", f"{MACHINES}?metadata.role=web&summary=true")) == 2
    assert await api.ask("GET", f"{MACHINES}?metadata.role=db") == []
    assert await api.ask("GET", f"{MACHINES}?region=elsewhere") == []
    assert all("config" not in machine for machine in await api.ask("GET", f"{MACHINES}?summary=1"))
    await api.ask("GET", f"{MACHINES}?state=nonsense", status=400)


async def test_stop_start_restart_destroy(api: Api) -> None:
    """Each is answered at once and goes on; fly-go's zero timeout means none, kill=true means force."""
    id = await created(api)
    assert await api.ask("POST", f"{MACHINES}/{id}/stop", {"timeout": "0s", "id": id}) == {"ok": True}
    await api.ask("GET", f"{MACHINES}/{id}/wait?state=stopped&timeout=20")
    started = await api.ask("POST", f"{MACHINES}/{id}/start")
    assert started["previous_state"] == "stopped"
    await api.ask("GET", f"{MACHINES}/{id}/wait?state=started&timeout=20")
    assert await api.ask("POST", f"{MACHINES}/{id}/restart?timeout=5&force_stop=true") == {"ok": True}
    await api.ask("GET", f"{MACHINES}/{id}/wait?state=started&timeout=20")
    await api.ask("DELETE", f"{MACHINES}/{id}?kill=true")
    await api.ask("GET", f"{MACHINES}/{id}/wait?state=destroyed&timeout=20", status=None)
    assert await api.ask("GET", MACHINES) == []


async def test_an_update_replaces_the_version(api: Api) -> None:
    """The new configuration is whole, old ones are listed, and another current version is refused."""
    id = await created(api, skip_launch=True)
    before = await api.ask("GET", f"{MACHINES}/{id}")
    body = {"config": {"image": "alpine:3.21"}, "skip_launch": True, "current_version": before["version"]}
    after = await api.ask("POST", f"{MACHINES}/{id}", body)
    assert after["version"] != before["version"] and "env" not in after["config"]
    assert (await api.ask("POST", f"{MACHINES}/{id}", body, status=412))["error"]
    versions = await api.ask("GET", f"{MACHINES}/{id}/versions")
    assert {entry["version"] for entry in versions} == {before["version"], after["version"]}


async def test_leases_guard_changes(api: Api) -> None:
    """The envelope has ``data``; without the nonce changes are 409, with it they go through; metadata is not guarded."""
    id = await created(api, skip_launch=True)
    await api.ask("GET", f"{MACHINES}/{id}/lease", status=404)
    lease = await api.ask("POST", f"{MACHINES}/{id}/lease?ttl=30", status=201)
    nonce = lease["data"]["nonce"]
    assert lease["status"] == "success" and lease["data"]["owner"] == "operator"
    held = await api.ask("POST", f"{MACHINES}/{id}/lease", {"ttl": 30, "description": "mine"}, status=409)
    assert "lease currently held by" in held["error"]
    await api.ask("POST", f"{MACHINES}/{id}/cordon", status=409)
    await api.ask("POST", f"{MACHINES}/{id}/cordon", headers={"fly-machine-lease-nonce": nonce})
    assert (await api.ask("GET", f"{MACHINES}/{id}"))["cordoned"] is True
    await api.ask("POST", f"{MACHINES}/{id}/metadata/k", {"value": "v"}, status=204)
    again = await api.ask("POST", f"{MACHINES}/{id}/lease?ttl=60", status=201, headers={"fly-machine-lease-nonce": nonce})
    assert again["data"]["nonce"] == nonce and again["data"]["expires_at"] >= lease["data"]["expires_at"]
    assert (await api.ask("GET", f"{MACHINES}/{id}/lease"))["data"]["expires_at"] == again["data"]["expires_at"]
    await api.ask("DELETE", f"{MACHINES}/{id}/lease", status=400)
    released = await api.ask("DELETE", f"{MACHINES}/{id}/lease", headers={"fly-machine-lease-nonce": nonce})
    assert released == {"status": "success", "data": {"ok": True}}
    await api.ask("POST", f"{MACHINES}/{id}/uncordon")


async def test_one_of_many_gets_the_lease(api: Api) -> None:
    """Fifty ask at once; one has it, the others are told so."""
    id = await created(api, skip_launch=True)
    url = f"{api.url}{MACHINES}/{id}/lease?ttl=30"

    async def ask() -> int:
        async with api.session.post(url, headers={"Authorization": "Bearer operator"}) as answer:
            return answer.status

    statuses = await asyncio.gather(*(ask() for _ in range(50)))
    assert sorted(statuses) == [201] + [409] * 49


async def test_a_lease_may_come_with_the_create(api: Api) -> None:
    """Its nonce is in the answer, and nowhere after."""
    machine = await api.ask("POST", MACHINES, {"config": CONFIG, "skip_launch": True, "lease_ttl": 30})
    assert machine["nonce"]
    assert "nonce" not in await api.ask("GET", f"{MACHINES}/{machine['id']}")
    await api.ask("DELETE", f"{MACHINES}/{machine['id']}", status=409)
    await api.ask("DELETE", f"{MACHINES}/{machine['id']}", headers={"fly-machine-lease-nonce": machine["nonce"]})


async def test_metadata(api: Api) -> None:
    """PUT and PATCH change what they name, null and "" remove, another version is refused."""
    id = await created(api, skip_launch=True)
    url = f"{MACHINES}/{id}/metadata"
    assert await api.ask("GET", url) == {"role": "web"}
    await api.ask("PUT", url, {"metadata": {"a": "1", "b": "2"}}, status=204)
    await api.ask("PATCH", url, {"metadata": {"a": None, "b": "", "c": "3"}}, status=204)
    assert await api.ask("GET", url) == {"role": "web", "c": "3"}
    assert await api.ask("GET", f"{url}/c") == {"value": "3"}
    await api.ask("GET", f"{url}/none", status=404)
    await api.ask("DELETE", f"{url}/c", status=204)
    await api.ask("PUT", url, {"metadata": {"x": "1"}, "machine_version": "01AAAAAAAAAAAAAAAAAAAAAAAA"}, status=412)
    assert (await api.ask("GET", f"{MACHINES}/{id}"))["config"]["metadata"] == {"role": "web"}


async def test_wait(api: Api) -> None:
    """A timeout is 408 in words that flyctl survives; states may be several; bad parameters are 400."""
    id = await created(api, skip_launch=True)
    late = await api.ask("GET", f"{MACHINES}/{id}/wait?state=started&timeout=1", status=408)
    assert "failed to reach desired state" not in late["error"] and "created" in late["error"]
    assert (await api.ask("GET", f"{MACHINES}/{id}/wait?state=settled"))["state"] == "created"
    assert (await api.ask("GET", f"{MACHINES}/{id}/wait?state=stopped&state=created,failed"))["state"] == "created"
    for query in ("timeout=0", "timeout=61", "timeout=x", "state=nonsense"):
        await api.ask("GET", f"{MACHINES}/{id}/wait?{query}", status=400)
    await api.ask("GET", f"{MACHINES}/00000000000000/wait", status=404)


async def test_exec_ps_and_signal(api: Api) -> None:
    """Words as a shell splits them; signals by name and number; none of it for a machine that does not run."""
    id = await created(api)
    url = f"{MACHINES}/{id}"
    answer = await api.ask("POST", f"{url}/exec", {"cmd": "echo 'a b' c", "timeout": 5})
    assert set(answer) == {"exit_code", "exit_signal", "stdout", "stderr"}
    await api.ask("POST", f"{url}/exec", {"command": ["true"], "stdin": "x"})
    for body in ({"cmd": "echo 'open"}, {"cmd": ""}, {}, {"command": "true"}, {"cmd": "true", "timeout": -1}):
        await api.ask("POST", f"{url}/exec", body, status=400)
    assert isinstance(await api.ask("GET", f"{url}/ps?sort_by=rss&order=desc"), list)
    await api.ask("GET", f"{url}/ps?sort_by=nonsense", status=400)
    taken = await api.ask("GET", f"{url}/statistics", token="reader")
    assert taken == {"host": None, "memory_limit": -1, "guest": None, "why": "it has no guest"}
    await api.ask("GET", f"{url}/statistics", token="other", status=403)
    assert await api.ask("POST", f"{url}/signal", {"signal": 10}) == {"ok": True}
    assert await api.ask("POST", f"{url}/signal", {"signal": "SIGUSR1"}) == {"ok": True}
    await api.ask("POST", f"{url}/signal", {"signal": "SIGNOT"}, status=400)


async def test_unknown_machines_apps_and_routes(api: Api) -> None:
    """404 with words that clients look for; another app's machine is not there."""
    assert "machine not found" in (await api.ask("GET", f"{MACHINES}/00000000000000", status=404))["error"]
    id = await created(api, skip_launch=True)
    await api.ask("GET", f"/v1/apps/other/machines/{id}", status=404)
    await api.ask("GET", "/v1/apps/missing/machines", status=404)
    assert (await api.ask("GET", "/v1/nothing", status=404))["code"] == "not_found"
    assert (await api.ask("PUT", MACHINES, status=405))["error"]


async def test_organizations_lists_come_in_pages(api: Api) -> None:
    """A cursor leads to the next page, the last has none, and a scoped token sees its app alone."""
    ids = {await created(api, skip_launch=True) for _ in range(5)}
    seen: list[str] = []
    cursor = ""
    pages = 0
    while cursor or not pages:
        pages += 1
        page = await api.ask("GET", f"/v1/orgs/personal/machines?limit=2&cursor={cursor}")
        seen += [machine["id"] for machine in page["machines"]]
        cursor = page["next_cursor"]
    assert pages == 3 and len(seen) == 5 and set(seen) == ids
    later = await api.ask("GET", f"/v1/orgs/personal/machines?updated_after={page['last_updated_at']}")
    assert later["machines"] == [] and later["next_cursor"] == ""
    assert (await api.ask("GET", "/v1/orgs/personal/machines", token="other"))["machines"] == []
    await api.ask("GET", "/v1/orgs/foreign/machines", status=404)
    for query in ("cursor=!", "cursor=YWJj", "limit=0", "updated_after=yesterday"):
        await api.ask("GET", f"/v1/orgs/personal/machines?{query}", status=400)
