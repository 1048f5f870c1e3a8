"""``castoff machine`` and its kin against a real agent, as a person types them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import agent
from guests import MIB
from machines import Castoff, castoff_state

SCRIPT = "echo hello $WHO $TOKEN; echo oops >&2; trap 'exit 0' INT; while :; do sleep 0.1; done"


@pytest.fixture(name="state", scope="module")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        config = state.state.parent / "agent.toml"
        config.write_text('[agent]\nlisten = ""\n')
        yield Castoff(state.state, state.image, config)


def said(state: Castoff, *words: str, code: int = 0, **options: object) -> str:
    """What a command prints; it must end with ``code``."""
    done = state(*words, **options)
    assert done.returncode == code, done.stderr
    return done.stdout.decode()


def copies(state: Castoff, directory: Path) -> None:
    """A directory with megabytes of any bytes in, as another name, and out again; links that lead out stay there."""
    source = directory / "source"
    (source / "below").mkdir(parents=True)
    data = os.urandom(3 << 20)
    (source / "below" / "binary").write_bytes(data)
    (source / "program").write_bytes(b"#!/bin/sh\necho it runs\n")
    (source / "program").chmod(0o755)
    said(state, "machine", "cp", str(source), "web:/srv/copy")
    said(state, "machine", "cp", str(source / "program"), "web:/tmp")
    assert said(state, "machine", "exec", "web", "/tmp/program") == "it runs\n"
    assert said(state, "machine", "exec", "web", "stat", "-c", "%u %a", "/srv/copy/below/binary") == "0 644\n"
    said(state, "machine", "exec", "web", "ln", "-s", "/etc/passwd", "/srv/copy/out")
    said(state, "machine", "exec", "web", "ln", "-s", "below/binary", "/srv/copy/in")
    done = state("machine", "cp", "web:/srv/copy", str(directory))
    assert done.returncode == 1 and b"copy/out is left out" in done.stderr
    back = directory / "copy"
    assert (back / "in").read_bytes() == data and (back / "program").stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in back.iterdir()) == ["below", "in", "program"]
    said(state, "machine", "cp", "web:/srv/data", str(directory / "data"))
    assert (directory / "data").read_bytes() == b"from the image\n"
    assert b"/no/such" in state("machine", "cp", "web:/no/such", str(directory)).stderr
    assert said(state, "machine", "cp", str(source / "program"), "web:/no/such/directory", code=3) == ""


def test_a_machine_from_run_to_destroy(state: Castoff, tmp_path: Path) -> None:
    """run, list, show, exec with its exit code, logs apart, cp, events, stop, update, destroy."""
    with agent(state):
        said(state, "app", "create", "shop")
        said(state, "secret", "set", "TOKEN", "--app", "shop", input=b"s3cret\n")
        assert "TOKEN" in said(state, "secret", "list", "--app", "shop")
        words = ("--name", "web", "--app", "shop", "-e", "WHO=world", "--memory", "192M", state.image, "sh", "-c", SCRIPT)
        id = said(state, "machine", "run", *words).strip()
        listed = {row["id"]: row for row in json.loads(said(state, "machine", "list", "--json"))}
        assert (listed[id]["name"], listed[id]["app"], listed[id]["state"]) == ("web", "shop", "started")
        assert listed[id]["config"]["guest"] == {"memory_mb": 192}
        assert "shop" in said(state, "machine", "show", "web")
        assert said(state, "machine", "exec", "web", "sh", "-c", "echo $WHO; exit 7", code=7) == "world\n"
        assert said(state, "machine", "exec", "-i", "web", "cat", input=b"piped") == "piped"
        logs = state("machine", "logs", "web")
        assert (logs.stdout, logs.stderr) == (b"hello world s3cret\n", b"oops\n")
        copies(state, tmp_path)
        shown = said(state, "machine", "top", "web")
        assert " sh " in shown and "load" in shown and "B used, " in shown
        taken = json.loads(said(state, "machine", "top", "web", "--json"))["statistics"]
        guest, (root,) = taken["guest"], taken["guest"]["filesystems"]
        assert 100 * MIB < guest["memory_available"] < guest["memory"] < 192 * MIB and guest["up_seconds"] > 0.5
        assert guest["system_seconds"] > 0 and guest["sent"] > 0
        assert root["path"] == "/" and 0 < root["used"] < root["size"] and root["available"] > 0
        assert taken["host"] is None or 32 * MIB < taken["host"]["memory"] <= taken["memory_limit"]
        assert said(state, "machine", "stop", "web").strip() == id
        assert "exit code 0" in said(state, "machine", "events", "web")
        assert said(state, "machine", "wait", "web", "--until", "stopped").strip() == "stopped"
        assert id in said(state, "machine", "update", "--skip-start", "--memory", "256M", "web")
        assert state("app", "delete", "shop").returncode != 0
        assert said(state, "machine", "destroy", "web").strip() == id
        assert said(state, "machine", "list").split() == ["ID", "NAME", "APP", "IMAGE", "STATE", "CHECKS", "AGE"]
        assert said(state, "app", "delete", "shop").strip() == "shop"


def test_what_goes_wrong_is_said(state: Castoff) -> None:
    """No agent, no such machine, an image that is not there, no image at all."""
    done = state("machine", "start", "web")
    assert done.returncode == 5
    assert b"castoff agent" in done.stderr
    assert said(state, "machine", "list", "--json").strip() == "[]"
    with agent(state):
        assert b"no machine 'nobody'" in state("machine", "stop", "nobody").stderr
        assert b"/no/such" in state("machine", "run", "oci:/no/such").stderr
        assert state("machine", "create").returncode == 2
        made = said(state, "machine", "create", state.image).strip()
        assert said(state, "machine", "destroy", made).strip() == made
