"""Releases, secrets by GraphQL, and an app's logs: what flyctl and fly-admin want beside the Machines API."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.api_server import Api, running

from castoff.agent.applogs import app_log_routes
from castoff.agent.launch.logs import Logs
from castoff.errors import NotFound

RELEASES = "/api/v1/releases"
OF_APP = "/api/v1/apps/mine/releases"
LOGS = "/api/v1/apps/mine/logs"
SET = "mutation($input: SetSecretsInput!) { setSecrets(input: $input) { release { id } } }"
UNSET = "mutation($input: UnsetSecretsInput!) { unsetSecrets(input: $input) { release { id } } }"
CONFIG = (
    "query($appName: String!) { app(name: $appName) { version config { definition } "
    "currentReleaseUnprocessed { configDefinition imageRef } } }"
)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A running server, whose machines' logs are in ``tmp_path/logs``."""
    async with running(tmp_path, [app_log_routes(Logs(tmp_path / "logs"))]) as found:
        yield found


async def machine(api: Api, **config: Any) -> str:
    """A machine that is not started."""
    body = {"config": {"image": "alpine", **config}, "skip_launch": True}
    return str((await api.ask("POST", "/v1/apps/mine/machines", body))["id"])


async def test_a_deployment_is_written_down(api: Api) -> None:
    """Numbered by app; the newest one is what later commands read; a client that deletes the app begins anew."""
    await api.ask("GET", f"{OF_APP}/current", status=404)
    definition = {"app": "mine", "env": {"A": "1"}}
    new = {"app_name": "mine", "image": "alpine:3", "strategy": "ROLLING", "definition": definition, "build_id": 7}
    first = (await api.ask("POST", RELEASES, new, status=201))["release"]
    assert (first["version"], first["status"], first["in_progress"]) == (1, "pending", True)
    done = await api.ask("PATCH", f"{RELEASES}/{first['id']}", {"status": "complete", "metadata": None})
    assert (done["status"], done["in_progress"], done["stable"]) == ("complete", False, True)
    second = (await api.ask("POST", RELEASES, {**new, "image": "alpine:4"}, status=201))["release"]
    assert second["version"] == 2
    assert [found["version"] for found in (await api.ask("GET", OF_APP))["releases"]] == [2, 1]
    assert [found["version"] for found in (await api.ask("GET", f"{OF_APP}?limit=1"))["releases"]] == [2]
    assert (await api.ask("GET", f"{OF_APP}/current"))["image_ref"] == "alpine:4"
    assert (await api.ask("GET", f"{RELEASES}/all_current")).keys() == {"mine"}
    app = (await api.ask("POST", "/graphql", {"query": CONFIG, "variables": {"appName": "mine"}}))["data"]["app"]
    assert app["version"] == 2 and app["config"] == {"definition": definition}
    assert app["currentReleaseUnprocessed"] == {"configDefinition": definition, "imageRef": "alpine:4"}
    await api.ask("DELETE", "/v1/apps/mine", status=202)
    await api.ask("POST", "/v1/apps", {"name": "mine"}, status=201)
    assert (await api.ask("GET", OF_APP))["releases"] == []


async def test_only_the_last_releases_are_kept(api: Api) -> None:
    """A client that deploys for ever fills no disk."""
    for _ in range(103):
        await api.ask("POST", RELEASES, {"app_name": "mine"}, status=201)
    kept = (await api.ask("GET", f"{OF_APP}?limit=1000"))["releases"]
    assert [found["version"] for found in kept] == list(range(103, 3, -1))


async def test_who_may_release(api: Api) -> None:
    """A token for another app, or for reading, releases nothing and learns of none; what is no status is refused."""
    new = {"app_name": "mine"}
    for token in ("other", "reader"):
        await api.ask("POST", RELEASES, new, token=token, status=403)
    release = (await api.ask("POST", RELEASES, new, token="mine", status=201))["release"]
    one = f"{RELEASES}/{release['id']}"
    await api.ask("PATCH", one, {"status": "complete"}, token="other", status=404)
    await api.ask("PATCH", one, {"status": "complete"}, token="reader", status=403)
    await api.ask("GET", OF_APP, token="other", status=403)
    assert await api.ask("GET", f"{RELEASES}/all_current", token="other") == {}
    for status in ("", "Complete!", "x" * 40):
        await api.ask("PATCH", one, {"status": status}, status=400)
    await api.ask("PATCH", f"{RELEASES}/unknown", {"status": "complete"}, status=404)
    await api.ask("POST", RELEASES, {"app_name": "missing"}, status=404)
    await api.ask("POST", RELEASES, {**new, "definition": "text"}, status=400)


async def test_secrets_by_graphql(api: Api) -> None:
    """As fly-admin sets them: no release comes of it, and a token needs the same right as by the Machines API."""

    async def change(query: str, wanted: Any, token: str = "mine") -> Any:
        return await api.ask("POST", "/graphql", {"query": query, "variables": {"input": wanted}}, token=token)

    async def names() -> list[str]:
        return [secret["name"] for secret in (await api.ask("GET", "/v1/apps/mine/secrets"))["secrets"]]

    both = {"appId": "mine", "secrets": [{"key": "A", "value": "1"}, {"key": "B", "value": "2"}]}
    assert (await change(SET, both))["data"] == {"setSecrets": {"release": None}}
    assert await names() == ["A", "B"]
    assert (await change(UNSET, {"appId": "mine", "keys": ["A", "unknown"]}))["data"] == {"unsetSecrets": {"release": None}}
    assert await names() == ["B"]
    await change(SET, {"appId": "mine", "secrets": [{"key": "C", "value": "3"}], "replaceAll": True})
    assert await names() == ["C"]
    for token in ("other", "reader"):
        assert (await change(SET, both, token))["errors"]
    for wrong in (
        None,
        {},
        {"appId": "mine", "secrets": "x"},
        {**both, "appId": "missing"},
        {**both, "secrets": [{"key": "a b", "value": ""}]},
    ):
        assert (await change(SET, wrong))["errors"]
    assert await names() == ["C"]


@pytest.mark.parametrize(
    ("mutation", "said"),
    [
        ("validateWireGuardPeers", "fly machine exec"),
        ("allocateIpAddress", "no proxy"),
        ("addCertificate", "no proxy"),
        ("createLimitedAccessToken", "castoff token create"),
        ("createOrganization", "agent.organization"),
        ("createApp", "the Machines API does"),
    ],
)
async def test_other_mutations_say_how_else(api: Api, mutation: str, said: str) -> None:
    """What flyctl shows to its user is of use to them."""
    answer = await api.ask("POST", "/graphql", {"query": f"mutation {{ {mutation}(input: {{}}) {{ id }} }}"})
    assert said in answer["errors"][0]["message"]


async def test_mounts_tell_their_volumes_name_and_size(api: Api) -> None:
    """`flyctl machine clone` and `flyctl scale count` make the next volume of what they read there."""
    volume = await api.ask("POST", "/v1/apps/mine/volumes", {"name": "data", "size_gb": 3})
    mount = {"volume": volume["id"], "path": "/data"}
    one = f"/v1/apps/mine/machines/{await machine(api, mounts=[mount])}"
    filled = {**mount, "name": "data", "size_gb": 3, "encrypted": False}
    assert (await api.ask("GET", one))["config"]["mounts"] == [filled]
    await api.ask("PUT", f"/v1/apps/mine/volumes/{volume['id']}/extend", {"size_gb": 5})
    body = {"config": {"image": "alpine", "mounts": [filled]}, "skip_launch": True}
    assert (await api.ask("POST", one, body))["config"]["mounts"] == [{**filled, "size_gb": 5}]
    wrong = {"config": {"image": "alpine", "mounts": [{"volume": "vol_unknown", "path": "/data"}]}}
    await api.ask("POST", "/v1/apps/mine/machines", wrong, status=404)


def write(directory: Path, machine: str, lines: list[tuple[int, str]], name: str = "current") -> None:
    """Lines of a machine's log, with their times."""
    (directory / machine).mkdir(parents=True, exist_ok=True)
    with (directory / machine / name).open("a") as file:
        file.writelines(json.dumps({"t": time, "s": 1, "m": text}) + "\n" for time, text in lines)


async def test_logs_come_in_pages(api: Api, tmp_path: Path) -> None:
    """Those of all machines in the order of their times; the next page goes on behind the last line, also among equal times."""
    one, two = sorted([await machine(api), await machine(api)])
    now = int(time.time() * 1000) - 60_000
    write(tmp_path / "logs", one, [(now, "a"), (now + 2, "c"), (now + 2, "d")])
    write(tmp_path / "logs", two, [(now + 1, "b"), (now + 2, "e")])

    async def page(token: str, **query: str) -> tuple[list[str], str]:
        answer = await api.ask("GET", LOGS, params={"next_token": token, **query})
        return [line["attributes"]["message"] for line in answer["data"]], answer["meta"]["next_token"]

    lines, token = await page("")
    assert lines == ["a", "b", "c", "d", "e"]
    assert await page(token) == ([], token)
    write(tmp_path / "logs", two, [(now + 2, "f"), (now + 3, "g")])
    lines, token = await page(token)
    assert lines == ["f", "g"]
    assert await page(token) == ([], token)
    assert (await page("", instance=two))[0] == ["b", "e", "f", "g"]
    assert (await page("", region="local"))[0] != [] and (await page("", region="elsewhere")) == ([], "")
    first = (await api.ask("GET", LOGS))["data"][0]["attributes"]
    assert first["instance"] == one and first["region"] == "local" and first["level"] == "info"
    await api.ask("GET", "/api/v1/apps/missing/logs", status=404)
    await api.ask("GET", f"{LOGS}?instance=unknown", status=404)
    await api.ask("GET", LOGS, token="other", status=403)
    for wrong in ("x", "1", "1-1-1", "-1-2", "1" * 40 + "-1"):
        await api.ask("GET", LOGS, params={"next_token": wrong}, status=400)


async def test_a_long_log_is_read_from_where_the_last_page_ended(api: Api, tmp_path: Path) -> None:
    """Page after page, each line once, over files that were turned over, and where a thousand lines are of one moment."""
    id = await machine(api)
    now = int(time.time() * 1000) - 600_000
    texts = [f"{number:05} {'x' * 500}" for number in range(9000)]
    times = [now + min(number, 3000) + max(0, number - 6000) for number in range(9000)]  # 3001 lines of one time
    lines = list(zip(times, texts, strict=True))
    write(tmp_path / "logs", id, lines[:2500], "1")
    write(tmp_path / "logs", id, lines[2500:])
    first = await api.ask("GET", LOGS)
    assert [line["attributes"]["message"] for line in first["data"]] == texts[-100:]
    seen, token = [], f"{now}-0"
    while len(seen) < len(texts):
        answer = await api.ask("GET", LOGS, params={"next_token": token})
        assert 0 < len(answer["data"]) <= 1000
        seen += [line["attributes"]["message"] for line in answer["data"]]
        token = answer["meta"]["next_token"]
    assert seen == texts
    assert token == first["meta"]["next_token"]


async def test_a_first_page_among_lines_of_one_time(api: Api, tmp_path: Path) -> None:
    """It has the last hundred; the next one does not begin with those before them."""
    id = await machine(api)
    now = int(time.time() * 1000) - 60_000
    write(tmp_path / "logs", id, [(now, str(number)) for number in range(300)])
    first = await api.ask("GET", LOGS)
    assert [line["attributes"]["message"] for line in first["data"]] == [str(number) for number in range(200, 300)]
    write(tmp_path / "logs", id, [(now, "more")])
    following = await api.ask("GET", LOGS, params=first["meta"])
    assert [line["attributes"]["message"] for line in following["data"]] == ["more"]


async def test_a_release_needs_its_app(api: Api) -> None:
    """Also at the moment of writing: the next app of that name has none of its predecessor's."""
    await api.ask("DELETE", "/v1/apps/mine", status=202)
    with pytest.raises(NotFound):
        await api.parts.releases.create("mine", image="", strategy="", definition={}, owner="me")
    await api.ask("POST", "/v1/apps", {"name": "mine"}, status=201)
    assert (await api.ask("GET", OF_APP))["releases"] == []
