"""packaging/castoff-agent.service: what systemd takes, and what castoff needs of it."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

from machines import ROOT

UNIT = ROOT / "packaging" / "castoff-agent.service"
NAMESPACES = re.compile(
    r"Protect(?!Clock|Hostname)\w+|Private(?!Network|Users)\w+|ReadWritePaths|ReadOnlyPaths|InaccessiblePaths|BindPaths|"
    r"BindReadOnlyPaths|TemporaryFileSystem|RootDirectory|RootImage|MountFlags|DynamicUser|ProcSubset|LogNamespace|MountAPIVFS"
)
"""Settings that give a service mounts of its own (systemd.exec(5))."""


def settings(section: str) -> dict[str, list[str]]:
    """A section's settings, those that are given several times in order."""
    found: dict[str, list[str]] = {}
    text = UNIT.read_text().partition(f"[{section}]\n")[2]
    for line in re.split(r"^\[", text, maxsplit=1, flags=re.MULTILINE)[0].splitlines():
        if line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals and name.isalpha(), line
            found.setdefault(name, []).append(value)
    return found


def test_systemd_takes_it(tmp_path: Path) -> None:
    """systemd-analyze has nothing to say; where it is not installed, the sections and the command are looked at all the same."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(UNIT.read_text())
    assert parser.sections() == ["Unit", "Service", "Install"]
    assert settings("Service")["ExecStart"] == ["/opt/castoff/bin/castoff agent"]
    assert settings("Install") == {"WantedBy": ["multi-user.target"]}
    if shutil.which("systemd-analyze"):
        here = tmp_path / UNIT.name
        castoff = Path(sys.executable).with_name("castoff")
        here.write_text(UNIT.read_text().replace("/opt/castoff/bin/castoff", str(castoff)))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", here], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_machines_outlive_the_service() -> None:
    """Its end and an out-of-memory kill end its own process only, and its mounts are the host's."""
    service = settings("Service")
    assert service["Type"] == ["notify"]
    assert service["KillMode"] == ["process"]
    assert service["OOMPolicy"] == ["continue"]
    assert [name for name in service if NAMESPACES.fullmatch(name)] == []
