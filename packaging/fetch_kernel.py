"""``fetch_kernel.py DIRECTORY``: makes the guests' kernel ready in a directory, through castoff; nothing to do where it is.

A checkout keeps one kernel in .cache/kernels for every state directory that it makes, so that a fresh one needs no network.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from castoff.errors import CastoffError
from castoff.vmm.kernel import find_kernel
from castoff.vmm.settings import VmmSettings


def main(directory: Path) -> int:
    """The exit status."""
    try:
        kernel = asyncio.run(find_kernel(VmmSettings(), directory))
    except CastoffError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    print(kernel.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
