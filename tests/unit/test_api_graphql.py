"""GraphQL as flyctl sends it, and as nobody should."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from castoff.api.graphql.document import parse
from castoff.api.graphql.execute import select
from castoff.errors import Invalid


async def app(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": arguments["name"], "organization": {"slug": "personal"}, "nodes": [{"id": 1}, {"id": 2}], "none": None}


async def answer(query: str, **variables: Any) -> Any:
    return await select({"app": app}, parse(query, variables).selection)


async def test_aliases_and_variables() -> None:
    """The answer has the client's names."""
    query = "query($appName: String!) { appcompact: app(name: $appName) { name role: none { name } organization { slug } } }"
    assert await answer(query, appName="a") == {"appcompact": {"name": "a", "role": None, "organization": {"slug": "personal"}}}


async def test_fragments_lists_defaults_and_what_is_not_there() -> None:
    """Fragments may stand after their use; an unknown field is null."""
    query = """
    # a comment
    query Named($n: [String!]! = ["x"], $a: String = "dflt") { app(name: $a) { ...F ... on App { name } nodes { id, more } } }
    fragment F on App { organization { slug } other }
    """
    assert await answer(query) == {
        "app": {
            "organization": {"slug": "personal"},
            "other": None,
            "name": "dflt",
            "nodes": [{"id": 1, "more": None}, {"id": 2, "more": None}],
        }
    }


async def test_the_same_field_twice_is_merged() -> None:
    """As the specification wants it."""
    query = '{ app(name: "a") { organization { slug } } app(name: "a") { name } }'
    assert await answer(query) == {"app": {"organization": {"slug": "personal"}, "name": "a"}}


@pytest.mark.parametrize(
    "query",
    [
        "",
        "{",
        "}",
        "{ app(",
        "{ app(name: }",
        "subscription { x }",
        "{ ...Missing }",
        "{ ...F } fragment F on A { ...F }",
        "{ a }" + "{" * 10_000,
        "{ a " * 5_000,
        "{ a(x: " + "[" * 5_000,
        "{ ...A } "
        + "".join(f"fragment {a} on T {{ {f'...{b} ' * 20} }} " for a, b in zip("ABCDEFGH", "BCDEFGHI", strict=True))
        + "fragment I on T { x }",
        "{ a \x00 }",
        '{ a(x: "unterminated) }',
        "query(",
        "fragment F on A { x }",
        "{ x }" * 30_000,
    ],
)
def test_hostile_queries_are_refused(query: str) -> None:
    """Broken, endless and explosive documents end in an error."""
    with pytest.raises(Invalid):
        parse(query, {})
