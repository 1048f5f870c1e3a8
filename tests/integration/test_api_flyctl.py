"""What flyctl asks before it runs a machine, in its own words (MACHINES_API: GraphQL and uiex)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.api_server import Api, running

from oci_builder import build_image, write_layout

COMPACT = (
    "query ($appName: String!) { appcompact:app(name: $appName) { id name hostname deployed network status appUrl "
    "platformVersion internalNumericId organization { id internalNumericId slug paidPlan } postgresAppRole: role { name } } }"
)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A running server."""
    async with running(tmp_path) as found:
        yield found


async def test_app_compact(api: Api) -> None:
    """Aliases are honoured; the organization's number is text, the app's is none."""
    answer = await api.ask("POST", "/graphql", {"query": COMPACT, "variables": {"appName": "mine"}})
    app = answer["data"]["appcompact"]
    assert app["name"] == "mine" and app["postgresAppRole"] is None
    assert isinstance(app["internalNumericId"], int)
    assert app["organization"]["internalNumericId"] == "1" and app["organization"]["slug"] == "personal"


async def test_an_unknown_app_is_told_in_words_that_flyctl_looks_for(api: Api) -> None:
    """It then offers to make the app; a token for another app hears the same."""
    body = {"query": COMPACT, "variables": {"appName": "missing"}}
    assert "Could not find App" in (await api.ask("POST", "/graphql", body))["errors"][0]["message"]
    body = {"query": COMPACT, "variables": {"appName": "mine"}}
    assert "Could not find App" in (await api.ask("POST", "/graphql", body, token="other"))["errors"][0]["message"]


async def test_images(api: Api) -> None:
    """The size is a decimal string, the manifest plain JSON; an image that is not there is null."""
    query = (
        "query ($appName: String!, $imageRef: String!) { app(name: $appName) { id image(ref: $imageRef) "
        "{ id digest ref compressedSize: compressedSizeFull manifest } } }"
    )
    body = {"query": query, "variables": {"appName": "mine", "imageRef": "alpine"}}
    image = (await api.ask("POST", "/graphql", body, token="reader"))["data"]["app"]["image"]
    assert int(image["compressedSize"]) > 0 and image["manifest"] == {"annotations": {}}
    assert image["ref"] == "alpine"  # flyctl puts the digest behind it
    body["variables"]["imageRef"] = "missing"
    assert (await api.ask("POST", "/graphql", body))["data"]["app"]["image"] is None


async def test_images_on_the_hosts_disk(tmp_path: Path) -> None:
    """Known where the operator allowed the directory, by their path alone: flyctl would put a digest behind it. Elsewhere a
    client does not learn whether there is one."""
    query = 'query ($ref: String!) { app(name: "mine") { image(ref: $ref) { digest ref compressedSize: compressedSizeFull } } }'
    allowed = write_layout(tmp_path / "images" / "one", {"latest": build_image([b""])})
    hidden = write_layout(tmp_path / "hidden", {"latest": build_image([b""])})
    async with running(tmp_path, rootfs_directories=(tmp_path / "images",)) as api:

        async def asked(reference: str) -> Any:
            return await api.ask("POST", "/graphql", {"query": query, "variables": {"ref": reference}}, token="mine")

        image = (await asked(f"oci:{allowed}:latest"))["data"]["app"]["image"]
        assert (image["digest"], image["ref"]) == ("", f"oci:{allowed}:latest") and int(image["compressedSize"]) > 0
        others = (hidden, tmp_path / "nothing", f"{allowed}/../../hidden")
        texts = {(await asked(f"oci:{path}"))["errors"][0]["message"] for path in others}
        assert len(texts) == 1 and "rootfs_directories" in texts.pop()


async def test_machine_organizations_regions_and_issues(api: Api) -> None:
    """The other root fields."""
    made = await api.ask("POST", "/v1/apps/mine/machines", {"config": {"image": "alpine"}, "skip_launch": True})
    query = "query ($machineId: String!) { gqlmachine: machine(machineId: $machineId) { id app { name organization { slug } } } }"
    body = {"query": query, "variables": {"machineId": made["id"]}}
    assert (await api.ask("POST", "/graphql", body))["data"]["gqlmachine"]["app"]["name"] == "mine"
    assert (await api.ask("POST", "/graphql", body, token="other"))["errors"]
    query = (
        '{ organizations { nodes { id slug type } } nearestRegion { code } apphostissues: app(name: "mine") '
        "{ hostIssues { nodes { id } } } }"
    )
    data = (await api.ask("POST", "/graphql", {"query": query}))["data"]
    assert data["organizations"]["nodes"][0]["slug"] == "personal"
    assert data["nearestRegion"]["code"] == "local" and data["apphostissues"]["hostIssues"]["nodes"] == []


async def test_lists_of_apps(api: Api) -> None:
    """Of the organization; a token for one app sees that one; no app has a role."""
    query = (
        "query($org: ID, $role: String) { apps(organizationId: $org, role: $role) { nodes { name } pageInfo { hasNextPage } } }"
    )

    async def names(token: str = "operator", **variables: str) -> list[str]:
        body = {"query": query, "variables": variables}
        return [app["name"] for app in (await api.ask("POST", "/graphql", body, token=token))["data"]["apps"]["nodes"]]

    assert await names() == await names(org="personal") == ["mine", "other"]
    assert await names("mine") == ["mine"]
    assert await names(org="foreign") == await names(role="postgres_cluster") == []


@pytest.mark.parametrize(
    "query", ["", "{", "mutation { deleteApp(id: 1) { id } }", "{ __schema { types { name } } }", "{ secrets }"]
)
async def test_what_graphql_has_not(api: Api, query: str) -> None:
    """An error in the body with 200, as clients take other statuses for the server's."""
    answer = await api.ask("POST", "/graphql", {"query": query})
    assert answer["errors"][0]["message"]


async def test_uiex(api: Api) -> None:
    """Organization and builds, each exactly 200."""
    organization = (await api.ask("GET", "/api/v1/organizations/personal"))["organization"]
    assert organization["slug"] == "personal" and organization["internal_numeric_id"] == 1
    build = await api.ask("POST", "/api/v1/builds", {"app_name": "mine"})
    done = await api.ask("POST", "/api/v1/builds/finish", {"build_id": build["id"], "status": "completed"})
    assert done["id"] == build["id"] and done["status"] == "completed"
    await api.ask("GET", "/api/v1/organizations/foreign", status=404)


async def test_regions_placements_and_the_token(api: Api) -> None:
    """One host is one region."""
    regions = await api.ask("GET", "/v1/platform/regions")
    assert regions["nearest"] == "local" and regions["regions"][0]["code"] == "local"
    placed = await api.ask("POST", "/v1/platform/placements", {"org_slug": "personal", "count": 3})
    assert placed["regions"] == [{"region": "local", "count": 3, "concurrency": 3}]
    token = (await api.ask("GET", "/v1/tokens/current", token="mine"))["tokens"][0]
    assert token["apps"] == ["mine"] and token["org_slug"] == "personal"
