"""What every test may ask for: real daemons on loopback, a scratch XFS, and hypothesis' profiles."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import daemons

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, print_blob=True)
settings.register_profile(
    "fuzz",
    deadline=None,
    max_examples=1000,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    report_multiple_bugs=True,
)
settings.load_profile("ci")  # `--hypothesis-profile fuzz` comes later and wins


@pytest.fixture(scope="session")
def daemon_directory() -> Iterator[Path]:
    """A directory on a real filesystem (pytest's own may be a tmpfs) for what daemons keep."""
    directory = Path(tempfile.mkdtemp(prefix="castoff-tests-", dir="/var/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def kernels() -> Path:
    """A directory with a guest kernel ready in it (castoff.vmm.kernel's cache), fetched when it is first asked for.

    It outlives the tests, as the one download that they need. Copy it to ``STATE/store/kernels``, or use it as it is.
    """
    from castoff.vmm.kernel import find_kernel
    from castoff.vmm.settings import VmmSettings

    directory = Path(__file__).parent.parent / ".cache" / "kernels"
    asyncio.run(find_kernel(VmmSettings(), directory))
    return directory


@pytest.fixture(scope="session")
def registry(daemon_directory: Path) -> Iterator[daemons.Registry]:
    """A real docker-registry, empty at first; one for each pytest process."""
    with daemons.registry(daemon_directory / "registry") as found:
        yield found


@pytest.fixture(scope="session")
def containerd(daemon_directory: Path) -> Iterator[daemons.Containerd]:
    """A real containerd with its own root, state and socket; one for each pytest process."""
    with daemons.containerd(daemon_directory / "containerd") as found:
        yield found


@pytest.fixture(scope="session")
def xfs_mount(daemon_directory: Path) -> Iterator[Path]:
    """An 8 GiB XFS with reflinks; one for each pytest process."""
    with daemons.xfs(daemon_directory / "loop") as mount:
        yield mount


@pytest.fixture
def scratch_xfs(xfs_mount: Path) -> Iterator[Path]:
    """A fresh directory on XFS, gone after the test."""
    directory = Path(tempfile.mkdtemp(dir=xfs_mount))
    yield directory
    shutil.rmtree(directory)
