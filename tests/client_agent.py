"""An agent for clients that others wrote: over TCP, with stand-ins for machines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.recorder import NONCE

from agents import AgentProcess, agent, asked
from daemons import free_port
from machines import Castoff, castoff_state, eventually


@contextlib.contextmanager
def served(kernels: Path) -> Iterator[tuple[Castoff, AgentProcess, str]]:
    """The command over the agent's state, the agent, and its address."""
    with castoff_state(kernels) as state:
        config = state.state.parent / "agent.toml"
        address = f"127.0.0.1:{free_port()}"
        images = state.state.parent
        config.write_text(f'[agent]\nlisten = "{address}"\nrootfs_directories = ["{images}"]\n[vmm]\norder = ["stand-in"]\n')
        castoff = Castoff(state.state, state.image, config)
        with agent(castoff) as running:
            yield castoff, running, f"http://{address}"
        eventually("no machine is left", lambda: castoff.machines == [])


async def remove_machines(running: AgentProcess) -> None:
    """Destroys what a test left running: machines outlive their agent."""
    async with running.client() as api:
        for machine in (await asked(api, "GET", "/v1/orgs/personal/machines"))["machines"]:
            one = f"/v1/apps/{machine['app_name']}/machines/{machine['id']}"
            async with api.get(f"{one}/lease") as lease:
                nonce = (await lease.json())["data"]["nonce"] if lease.status == 200 else ""
            async with api.delete(f"{one}?force=true", headers={NONCE: nonce} if nonce else {}) as gone:
                assert gone.status == 200, await gone.text()
            await asked(api, "GET", f"{one}/wait?state=destroyed&timeout=60")
