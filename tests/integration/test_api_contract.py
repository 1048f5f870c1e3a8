"""Every operation of the published description, with what its schemas allow and with what they do not.

``tests/specs/machines-openapi.json`` is Fly's description of the Machines API as published in May 2026. Where Fly's own
clients need something else (a lease's envelope), the clients are right.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.api_server import Api, running

from castoff.api.routes.table import ROUTES
from castoff.api.routes.unserved import UNSERVED

SPECIFICATION = json.loads((Path(__file__).parents[1] / "specs" / "machines-openapi.json").read_text())
SCHEMAS = SPECIFICATION["components"]["schemas"]
METHODS = ("get", "put", "post", "delete", "patch")
OPERATIONS = [(method, path) for path, item in SPECIFICATION["paths"].items() for method in item if method in METHODS]
ENVELOPED = {("get", "/apps/{app_name}/machines/{machine_id}/lease"), ("post", "/apps/{app_name}/machines/{machine_id}/lease")}
EXAMPLES = 12
WRONG: list[Any] = [None, True, 0, -1, 2**70, 1.5, "", "x" * 300, "\x00", "../..", [], {}, [[]], {"a": {}}]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A running server."""
    async with running(tmp_path) as found:
        yield found


def served(path: str) -> str:
    """The route of a documented path: parameters may have other names."""
    return re.sub(r"\{\w+\}", "{}", path)


def test_every_documented_operation_has_a_route() -> None:
    """Served, or refused by name; none is simply not there."""
    routes = {(route.method.lower(), served(route.path)) for route in ROUTES}
    assert {(method, served(f"/v1{path}")) for method, path in OPERATIONS} <= routes


class Bodies:
    """Values for a schema of the description."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """One that the schema allows; about every fourth leaf is one that it may not allow."""
        schema = resolved(schema)
        if self._random.random() < 0.06:
            return self._random.choice(WRONG)
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        kind = schema.get("type", "object")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return [self.value(schema.get("items", {}), depth + 1) for _ in range(self._random.randrange(3))]
        leaves: dict[str, Callable[[], Any]] = {
            "string": lambda: self._random.choice(["", "a", "alpine", "10s", "on-failure", schema.get("example", "é\U0001f600")]),
            "integer": lambda: self._random.choice([0, 1, 2, 256, 8080, -1]),
            "number": lambda: self._random.random(),
            "boolean": lambda: self._random.random() < 0.5,
        }
        return leaves[kind]()

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        found = {
            name: self.value(member, depth + 1)
            for name, member in schema.get("properties", {}).items()
            if depth < 6 and self._random.random() < 0.5
        }
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict) and depth < 6:
            found["key"] = self.value(extra, depth + 1)
        return found


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without its references."""
    while "$ref" in schema or "allOf" in schema:
        schema = (
            SPECIFICATION["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema["allOf"][0]
        )
    return schema


def check(method: str, path: str, status: int, document: Any) -> None:
    """An answer against the description: of its status, or an error."""
    responses = SPECIFICATION["paths"][path][method]["responses"]
    schema: dict[str, Any] | None = None
    if status >= 400:
        schema = {"$ref": "#/components/schemas/ErrorResponse"}
        assert document["error"]
    elif str(status) in responses and (method, path) not in ENVELOPED:
        schema = next((content["schema"] for content in responses[str(status)].get("content", {}).values()), None)
    if schema is not None:
        jsonschema.validate(document, {**schema, "components": SPECIFICATION["components"]}, cls=jsonschema.Draft4Validator)


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[f"{method} {path}" for method, path in OPERATIONS])
async def test_operation(api: Api, method: str, path: str) -> None:
    """No body and no query makes the server fail; what it does not serve it says so; its answers are as described."""
    operation = SPECIFICATION["paths"][path][method]
    machine = await api.ask("POST", "/v1/apps/mine/machines", {"config": {"image": "alpine"}, "name": "kept"})
    await api.ask("GET", f"/v1/apps/mine/machines/{machine['id']}/wait?timeout=20")
    values = {"app_name": "mine", "machine_id": machine["id"], "org_slug": "personal", "key": "k", "secret_name": "NAME"}
    concrete = re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], "unknown"), path)
    bodies = Bodies(f"{method} {path}")
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    parameters = [parameter for parameter in operation.get("parameters", []) if parameter["in"] == "query"]
    refused = any(
        (method.upper(), served(route)) == (method.upper(), served(f"/v1{path}"))
        for verb, route in UNSERVED
        if verb == method.upper()
    )
    for _ in range(1 if refused else EXAMPLES):
        query = {
            parameter["name"]: str(bodies.value(parameter.get("schema", {"type": "string"})))
            for parameter in parameters
            if bodies._random.random() < 0.4
        }
        if "wait" in path:
            query["timeout"] = "1"
            query["state"] = "started"
        body = bodies.value(content["schema"]) if content else None
        answer = await api.response(method, f"/v1{concrete}", body, query)
        if refused:
            assert answer[0] == 501, answer
        else:
            assert answer[0] < 500, (query, body, answer)
        check(method, path, *answer)
