"""``python -m bench.agent_server DIRECTORY``: an agent's server whose machines run in memory, until its input ends.

The server, its routes and middlewares, the page's stream, the metrics and the database are the agent's own; a machine's start
takes the steps of a create and no time. Its URL is the one line that it writes.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.pages import served

from castoff.agent.process import calm_collector, raise_descriptors

__all__ = ["main"]


async def main(directory: Path) -> None:
    """Serves until stdin ends."""
    raise_descriptors()
    # One client stands for many hosts: its address's rate is not what is measured.
    async with served(directory, slow=None, requests_per_second=1e6, request_burst=1_000_000) as server:
        calm_collector()  # as `castoff agent` does
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
