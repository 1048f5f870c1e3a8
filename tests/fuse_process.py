"""A hydrator that can be killed: serves a lazy rootfs through FUSE descriptors that it inherits.

python fuse_process.py DIRECTORY WHOLE SIZE FRONT FILL DELAY
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from castoff.hydrate.front import Descriptors
from castoff.hydrate.fuse import FuseFront
from lazy_rootfs import Core, LazyFiles


def main() -> None:
    directory, whole, size, front, fill, delay = sys.argv[1:]
    descriptors = Descriptors(int(front), int(fill))
    core = Core(LazyFiles(Path(directory), Path(whole), int(size)), descriptors.fill, delay=float(delay))
    FuseFront(Path(directory), descriptors, lambda line: print(line, file=sys.stderr, flush=True)).start(core)
    print("serving", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
