"""docs/quickstart.md, run as it stands, against a real agent; only the image is one of this host's registry."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from agents import agent
from daemons import Registry, free_port
from machines import ROOT, Castoff, busybox_image, castoff_state
from oci_builder import write_layout

PAGE = (ROOT / "docs" / "quickstart.md").read_text()
ADDRESS, IMAGE = "127.0.0.1:4280", "docker.io/library/alpine:3"


def blocks(language: str) -> list[str]:
    """The page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def script() -> str:
    """All of them in the page's order, as one shell's."""
    parts = ["set -eu"]
    for language, text in re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        parts.append(text if language == "sh" else f"{shlex.quote(sys.executable)} - <<'END OF PYTHON'\n{text}END OF PYTHON")
    return "\n".join(parts) + "\n"


def test_the_page_has_what_is_run() -> None:
    """Shell and Python; nothing in them that this test would have to replace is spelled another way."""
    shell, python = blocks("sh"), blocks("python")
    assert len(shell) >= 5 and len(python) == 1
    assert shell[0].count(ADDRESS) == 1
    assert sum(block.count(IMAGE) for block in [*shell, *python]) == 2
    assert "alpine" not in "".join([*shell, *python]).replace(IMAGE, "")


async def test_the_quickstart(kernels: Path, registry: Registry, tmp_path: Path) -> None:
    """curl makes, waits, executes, reads, stops, starts and destroys; so does a client library that others wrote."""
    image = f"{registry.host}/quickstart/app:1"
    layout = write_layout(tmp_path / "layout", {"v1": busybox_image()})
    copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:v1", f"docker://{image}"]
    subprocess.run(copy, check=True, timeout=60)
    address = f"127.0.0.1:{free_port()}"
    with castoff_state(kernels) as made:
        config = tmp_path / "config.toml"
        config.write_text(f'[agent]\nlisten = "{address}"\n')
        state = Castoff(made.state, made.image, config)
        command = tmp_path / "bin" / "castoff"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {shlex.join(state.command())} "$@"\n')
        command.chmod(0o755)
        env = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}

        def here(text: str) -> str:
            return text.replace(ADDRESS, address).replace(IMAGE, image)

        with agent(state):
            done = subprocess.run(
                ["bash"], input=here(script()), text=True, capture_output=True, timeout=280, env=env, cwd=tmp_path
            )
            assert done.returncode == 0, (done.stdout, done.stderr)
            said = done.stdout.splitlines()
            logged = [json.loads(line)["m"] for line in said if line.startswith('{"t":')]
            assert len(logged) == 1 and logged[0].startswith("hello from hello, Linux ")
            assert [line for line in said if '"from inside: web\\n"' in line]
            assert [line for line in said if line.startswith("started sdk ")]
        assert state.machines == []
