"""``castoff run`` beside an agent, and by it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import agent
from machines import Castoff, castoff_state, eventually


@pytest.fixture(name="state", scope="module")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        config = state.state.parent / "agent.toml"
        config.write_text('[agent]\nlisten = ""\n')
        yield Castoff(state.state, state.image, config)


def listed(state: Castoff) -> dict[str, str]:
    """The agent's machines with their states."""
    return {row["id"]: row["state"] for row in state.json("machine", "list") if row.get("app")}


def test_runs_of_a_process_and_of_an_agent_share_a_store(state: Castoff) -> None:
    """A detached one goes on beside an attached one; that is this process's, and neither takes anything from the other."""
    with agent(state):
        done = state.run("sleep", "1000", flags=("-d", "--name", "goes-on", "--memory", "192M"))
        assert done.returncode == 0, done.stderr
        id = done.stdout.decode().strip()
        assert listed(state) == {id: "started"}
        done = state.run("sh", "-c", "cat; echo no >&2; exit 3", flags=("-i",), input=b"\x00\xffbytes")
        assert (done.returncode, done.stdout, done.stderr) == (3, b"\x00\xffbytes", b"no\n")
        assert listed(state) == {id: "started"}
        assert state("machine", "exec", "goes-on", "echo", "still").stdout == b"still\n"
        assert state("machine", "destroy", "--force", id).returncode == 0
        assert state.machines == []


def test_an_attached_run_by_an_agent(state: Castoff) -> None:
    """Its output and exit code come here, and it is gone then; also where this process is asked to end."""
    with agent(state):
        script = "echo $A of $(id -un); echo no >&2; seq 300; exit 7"
        flags = ("--agent", "always", "-e", "A=some", "-u", "app")
        done = state.run("sh", "-c", script, flags=flags)
        assert (done.returncode, done.stderr) == (7, b"no\n")
        assert done.stdout.decode().split("\n") == ["some of app", *map(str, range(1, 301)), ""]
        assert listed(state) == {} and state.machines == []
        running = state.start("sh", "-c", "echo up; sleep 1000", flags=("--agent", "always"))
        assert running.stdout is not None and running.stdout.readline() == b"up\n"
        assert list(listed(state).values()) == ["started"]
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
        assert running.returncode == 128 + signal.SIGINT
        eventually("its machine is gone", lambda: not listed(state) and not state.machines)


def test_what_an_agent_cannot_run_is_refused(state: Castoff) -> None:
    """Before anything is asked for; and a detached one needs an agent."""
    for flags, named in (
        (("-d", "-p", "8080:80"), b"no --publish"),
        (("--agent", "always", "-i"), b"no --interactive"),
        (("-d", "--workdir", "/x", "--console"), b"no --workdir, --console"),
        (("-d", "--agent", "never"), b"needs an agent"),
    ):
        done = state.run("true", flags=flags)
        assert done.returncode == 125 and named in done.stderr, done.stderr
    done = state.run("true", flags=("-d",))
    assert done.returncode == 125 and b"castoff agent" in done.stderr
    assert json.loads(state("machine", "list", "--json").stdout) == []
