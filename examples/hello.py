"""Runs a command in a machine, and prints what it says and where the time went.

python examples/hello.py IMAGE COMMAND...
"""

from __future__ import annotations

import asyncio
import sys

import castoff


async def main(image: str, *command: str) -> int:
    timeline = castoff.Timeline()
    with castoff.recording(timeline):
        async with castoff.Host.open() as host, await host.run(image, command=command) as machine:
            async for output in machine.output():
                stream = sys.stdout if output.stream == 1 else sys.stderr
                stream.buffer.write(output.data)
            code = await machine.wait()
    for step in timeline.steps:
        print(f"{step.started:7.3f} s  {step.name}", file=sys.stderr)
    return code


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(*sys.argv[1:])))
    except castoff.CastoffError as error:
        sys.exit(f"{error.code}: {error}")
