"""docs/operations.md says what the settings, the logs and exec really allow."""

from __future__ import annotations

import re
from pathlib import Path

from castoff.agent.launch import control, logs, request
from castoff.config import load
from castoff.lifecycle.launcher import ExecRequest
from castoff.lifecycle.settings import AgentSettings
from machines import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_its_configuration_is_one(tmp_path: Path) -> None:
    """Every key of the page's examples is a setting of the agent."""
    examples = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    found = []
    for text in examples:
        (tmp_path / "config.toml").write_text(text)
        found.append(load(tmp_path / "config.toml", state=tmp_path).agent)
    beyond_loopback, bridged = found
    assert beyond_loopback.tls_certificate is not None
    assert bridged.network.mode == "bridge" and bridged.network.publish
    assert set(re.findall(r"`agent\.(\w+)`", PAGE)) <= set(AgentSettings.__struct_fields__)


def test_its_limits_are_the_codes() -> None:
    """Numbers in the page's tables, and where they come from."""
    settings = AgentSettings()
    for text in (
        f"| open connections | {settings.connections}, then 503 |",
        f"{settings.requests_per_second:.0f} a second, {settings.request_burst} at once",
        f"| a request's body | {settings.request_bytes >> 20} MiB |",
        f"| {settings.client_timeout:.0f} s, then it is cut off |",
        f"| {control._COMMANDS} commands at once a machine",
        f"{ExecRequest(argv=('true',)).limit >> 20} MiB of each output stream",
        f"| a log line | {logs._LONGEST >> 10} KiB",
        f"up to {logs._KEPT + 1} files of {logs._FULL >> 20} MiB a machine",
    ):
        assert text in PAGE, text
    assert "waits ten minutes" in PAGE and request.LINGER == 600


def test_the_files_that_it_names_are_there() -> None:
    """Of this repository."""
    for name in set(re.findall(r"\b((?:docs|packaging)/[\w./-]+\w)", PAGE)):
        assert (ROOT / name).exists(), name
