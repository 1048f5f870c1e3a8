"""The agent's launcher on this host promises what every launcher does; it boots the image of a machine's version."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import castoff
from castoff.agent.launch.launcher import HostLauncher
from castoff.agent.launch.logs import Logs
from castoff.agent.launch.request import machine_request
from castoff.conformance.launcher import ENDS_WITH, check_launcher
from castoff.lifecycle.config import MachineConfig, parse_config
from castoff.lifecycle.launcher import Launch, Launcher
from castoff.machine.model import new_machine_id
from machines import castoff_state


async def test_the_launcher_on_this_host_is_a_launcher(kernels: Path) -> None:
    """Images, ends, outliving, discarding: real machines."""
    with castoff_state(kernels) as state:

        @contextlib.asynccontextmanager
        async def launcher() -> AsyncIterator[Launcher]:
            async with castoff.Host.open(state.state) as host:
                yield HostLauncher(host, Logs(state.state / "agent" / "logs"))

        def runs(script: str) -> MachineConfig:
            return parse_config({"image": state.image, "init": {"exec": ["sh", "-c", script]}})

        await check_launcher(
            launcher, stays=runs("exec sleep 600"), ends=runs(f"exit {ENDS_WITH}"), missing="oci:/no/such/layout"
        )
        assert state.machines == []


def _image(image: str, **more: Any) -> str:
    launch = Launch(machine=new_machine_id(), name="web", app="shop", version="01A", config=MachineConfig(image=image), **more)
    return machine_request(launch, (), None).image


def test_what_boots_is_the_image_of_the_version() -> None:
    """By its digest, wherever its tag has moved since; an image on disk, or one whose digest is not known, by its name."""
    digest = f"sha256:{'ab' * 32}"
    assert _image("localhost:5000/app:latest", digest=digest) == f"localhost:5000/app:latest@{digest}"
    assert _image("localhost:5000/app:latest") == "localhost:5000/app:latest"
    assert _image("oci:/images/app:1", digest=digest) == "oci:/images/app:1"
