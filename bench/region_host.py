"""``python -m bench.region_host CONFIG``: a host's process that is up, as an agent is; told an image, it preloads it.

Its lines: ``ready`` first; then one of JSON for each image that it reads from stdin: seconds, bytes of packs, CPU, memory.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from pathlib import Path

from castoff.config import load
from castoff.host import Host

# What a preload imports when it is first asked for: a process that is up has it.
from castoff.peers import swarm  # noqa: F401
from castoff.rootfs import composition, preload, remote, trusted  # noqa: F401
from castoff.sources import limit, registry  # noqa: F401


async def main(config: Path) -> None:
    """Answers until stdin ends."""
    async with Host.open(config=load(config)) as host:
        print("ready", flush=True)
        while image := (await asyncio.to_thread(sys.stdin.readline)).strip():
            before, begun = time.process_time(), time.monotonic()
            done = await host.preload(image)
            told = {
                "seconds": time.monotonic() - begun,
                "ended": time.monotonic(),
                "fetched": done.fetched,
                "way": done.way.value,
                "cpu": time.process_time() - before,
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            }
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
