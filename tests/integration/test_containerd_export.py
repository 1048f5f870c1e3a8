"""The program that shows mke2fs a snapshot: its mounts are nobody else's, wherever it runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from castoff.rootfs.containerd import export


@pytest.fixture
def chroot(tmp_path: Path) -> Iterator[Path]:
    """A directory with this host's programs in it, no mount point itself, in a mount that shares what is mounted in it."""
    shared = tmp_path / "shared"
    root = shared / "root"
    root.mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(shared), str(shared)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(shared)], check=True)
        names = {"usr", "bin", "lib", "lib64", "etc", "dev", "proc", Path(sys.base_prefix).parts[1]}
        for name in sorted(name for name in names if (Path("/") / name).exists()):
            (root / name).mkdir()
            subprocess.run(["mount", "--rbind", f"/{name}", str(root / name)], check=True)
            subprocess.run(["mount", "--make-rslave", str(root / name)], check=True)
        (root / "snapshot").mkdir()
        (root / "snapshot" / "found").touch()
        (root / "mount").mkdir()
        shutil.copy(export.__file__, root / "export.py")
        yield root
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(shared)], check=True)


def test_its_mounts_show_nowhere_else(chroot: Path) -> None:
    """In a chroot whose "/" is no mount point, below a mount that propagates: mounted for the command, and for nobody else."""
    mounts = [{"type": "bind", "source": "/snapshot", "options": ["rbind", "ro"]}]
    command = ["sh", "-c", f"ls /mount && ! touch /mount/new && cat /proc/{os.getpid()}/mountinfo"]
    job = json.dumps({"mounts": mounts, "directory": "/mount", "command": command})
    python = os.path.realpath(sys.executable)
    line = ["chroot", str(chroot), python, "-I", "/export.py"]
    done = subprocess.run(line, input=job, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "found"
    assert f" {chroot}/proc " in done.stdout  # these are the mounts that the test sees
    assert f" {chroot}/mount " not in done.stdout
    assert list((chroot / "mount").iterdir()) == []
