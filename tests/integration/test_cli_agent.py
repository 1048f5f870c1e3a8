"""The commands over the API, as a person types them, against a real server whose machines run in memory."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.api_server import Api, running

from castoff.fakes.launcher import World


@dataclass(frozen=True)
class Here:
    """A state directory in which a server listens."""

    api: Api
    world: World
    state: Path

    async def __call__(
        self, *words: str, code: int = 0, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> tuple[str, str]:
        """What a command writes to stdout and stderr; it must end with ``code``."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "castoff", "--state", str(self.state), *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | (env or {}),
        )
        out, err = await process.communicate(stdin)
        assert process.returncode == code, (words, out, err)
        return out.decode(), err.decode()

    async def json(self, *words: str) -> Any:
        """The answer for programs."""
        return json.loads((await self("--json", *words))[0])


@pytest.fixture(name="here")
async def _here(tmp_path: Path) -> AsyncIterator[Here]:
    state, world = tmp_path / "state", World()
    (state / "agent").mkdir(parents=True)
    world.ending["brief"] = 3
    world.failing.add("broken")
    async with running(state / "agent", world=world) as api:
        yield Here(api, world, state)


async def test_volumes(here: Here) -> None:
    """Made, mounted by name, extended, snapshotted, forked, listed of all apps; refused while attached; deleted."""
    made = (await here("volume", "create", "--app", "mine", "--size", "1500M", "data"))[0].strip()
    assert made.startswith("vol_")
    machine = (await here("machine", "run", "--app", "mine", "--name", "web", "--volume", "data:/data", "image"))[0].strip()
    (launch,) = here.world.launches
    assert [mount.volume for mount in launch.config.mounts or ()] == [made] and launch.volumes[0].endswith("data.ext4")
    (listed,) = await here.json("volume", "list")
    assert (listed["app"], listed["size_gb"], listed["attached_machine_id"]) == ("mine", 2, machine)
    assert "next time" not in (await here("volume", "extend", "data", "3G"))[0]
    here.world.rigid.add("image")
    assert "next time" in (await here("volume", "extend", "data", "4G"))[0]
    refused = await here("volume", "delete", "data", code=9)
    assert "attached to machine" in refused[1]
    await here("machine", "destroy", "--force", "web")
    snapshot = (await here("volume", "snapshot", "data"))[0].strip()
    again = (await here("volume", "create", "--app", "mine", "--snapshot", snapshot, "again"))[0].strip()
    fork = (await here("volume", "fork", "data"))[0].strip()
    shown = await here.json("volume", "show", made)
    assert [one["id"] for one in shown["snapshots"]] == [snapshot]
    assert snapshot in (await here("volume", "show", made))[0]
    ambiguous = await here("volume", "show", "data", code=9)
    assert fork in ambiguous[1] and "by its id" in ambiguous[1]
    assert (await here("volume", "delete", made, again, fork))[0].split() == [made, again, fork]
    assert await here.json("volume", "list") == []
    await here("volume", "show", "data", code=3)
    assert "VOLUME:PATH" in (await here("machine", "run", "--volume", "data", "image", code=2))[1]


async def test_what_becomes_of_a_machine_is_what_the_command_says(here: Here) -> None:
    """One whose command ends at once was started; one that does not boot fails with the reason, and its code."""
    brief = (await here("machine", "run", "--name", "brief", "brief", "true"))[0].strip()
    assert "exit code 3" in (await here("machine", "events", "brief"))[0]
    assert (await here("machine", "start", "brief"))[0].strip() == brief
    failed = await here("machine", "run", "broken", code=4)
    assert "does not boot" in failed[1] and "machine events" in failed[1]
    once = (await here("machine", "run", "--rm", "brief"))[0].strip()
    await here("machine", "wait", once, "--until", "destroyed", code=3)
    kept = (await here("machine", "create", "--name", "kept", "--restart", "no", "image"))[0].strip()
    updated = await here.json("machine", "update", "kept", "--skip-start", "--cpus", "2")
    assert (updated["id"], updated["config"]["guest"], updated["config"]["image"]) == (kept, {"cpus": 2}, "image")
    for words in (("start",), ("restart",), ("suspend",), ("start",), ("stop",), ("destroy",)):
        assert (await here("machine", *words, "kept"))[0].strip() == kept
    assert here.world.resumed == {kept: 1}


async def test_secrets_come_from_stdin_and_are_never_shown(here: Here, tmp_path: Path) -> None:
    """Set by stdin and by file; listed by digest; unset; a value given as an argument is none."""
    (tmp_path / "value").write_text("of a file\n")
    await here("secret", "set", "--app", "mine", "A", stdin=b"of stdin\n")
    await here("secret", "set", "--app", "mine", "--from-file", str(tmp_path / "value"), "B")
    assert await here.api.parts.secrets.values("mine") == {"A": "of stdin", "B": "of a file"}
    listed = (await here("secret", "list", "--app", "mine"))[0]
    assert "A " in listed and "of " not in listed
    await here("secret", "set", "--app", "mine", "A", "argument", code=2)
    await here("secret", "unset", "--app", "mine", "A")
    assert [one["name"] for one in await here.json("secret", "list", "--app", "mine")] == ["B"]


async def test_by_url_with_a_token_of_one_app(here: Here) -> None:
    """CASTOFF_URL and CASTOFF_TOKEN: another app's machines are not there; without a token nothing is."""
    by_url = {"CASTOFF_URL": here.api.url, "CASTOFF_TOKEN": "mine"}
    await here("machine", "create", "--app", "mine", "--name", "own", "image", env=by_url)
    foreign = await here("machine", "create", "--app", "other", "image", env=by_url, code=6)
    assert foreign[0] == "" and "Traceback" not in foreign[1]
    await here("app", "list", env=by_url | {"CASTOFF_TOKEN": ""}, code=6)
    assert "4280" in (await here("app", "list", env={"CASTOFF_URL": "localhost:4280"}, code=4))[1]
    assert (await here("app", "list", env=by_url))[0].split()[3:] == ["mine", "1", "deployed"]


async def test_tab_knows_the_agents_machines(here: Here) -> None:
    """By id and by name, as bash asks."""
    made = (await here("machine", "create", "--name", "web", "image"))[0].strip()
    line = f"castoff --state {here.state} machine stop "
    bash = {"_CASTOFF_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "5"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "castoff", stdout=asyncio.subprocess.PIPE, env=os.environ | bash
    )
    offered = (await process.communicate())[0].decode()
    assert {f"plain,{made}", "plain,web"} <= set(offered.split())


async def test_names_that_would_be_paths_are_refused(here: Here) -> None:
    """An app's and a secret's name become part of a URL."""
    for words in (("app", "show", "../tokens"), ("secret", "unset", "a/b"), ("machine", "create", "--app", "a?b", "image")):
        assert "is not a name" in (await here(*words, code=2))[1]
