"""What a guest does to its disk, as a process of its own: reads and writes at random, and compares all that it reads.

python clone_guest.py CLONE WHOLE SEED OPERATIONS [SECONDS]

Buffered and O_DIRECT, through several threads as a VMM has. Says "right" at its end, or what was wrong.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 4096
THREADS = 4


class Guest:
    """One region of the clone, which only this guest touches, and what must be in it."""

    def __init__(self, clone: Path, expected: bytes, first: int, seed: int) -> None:
        self.buffered = os.open(clone, os.O_RDWR)
        self.direct = os.open(clone, os.O_RDWR | os.O_DIRECT)
        self.expected = bytearray(expected)
        self.first = first
        self.dice = random.Random(seed)

    def run(self, operations: int) -> str:
        for _ in range(operations):
            wrong = self.step()
            if wrong:
                return wrong
        return ""

    def step(self) -> str:
        count = self.dice.choice((1, 1, 1, 2, 8, 32, 70))
        blocks = len(self.expected) // BLOCK
        block = self.dice.randrange(max(blocks - count, 1))
        at, size = block * BLOCK, min(count, blocks - block) * BLOCK
        direct = self.dice.random() < 0.5
        if self.dice.random() < 0.25:
            data = self.dice.randbytes(size)
            self.write(direct, data, at)
            self.expected[at : at + size] = data
            return ""
        data = self.read(direct, size, at)
        if data == self.expected[at : at + size]:
            return ""
        zeros = " (zeros)" if not any(data) else ""
        return f"{size} bytes at {self.first + at} are wrong{zeros}, {'direct' if direct else 'buffered'}"

    def read(self, direct: bool, size: int, at: int) -> bytes:
        with mmap.mmap(-1, size) as buffer:
            assert os.preadv(self.direct if direct else self.buffered, [buffer], self.first + at) == size
            return buffer[:]

    def write(self, direct: bool, data: bytes, at: int) -> None:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            assert os.pwritev(self.direct if direct else self.buffered, [buffer], self.first + at) == len(data)

    def check(self) -> str:
        """All of it, at the end."""
        for at in range(0, len(self.expected), 1 << 20):
            wanted = self.expected[at : at + (1 << 20)]
            if self.read(False, len(wanted), at) != wanted:
                return f"the MiB at {self.first + at} is wrong at the end"
        return ""


def main() -> None:
    clone, whole, seed, operations = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    check = len(sys.argv) <= 5
    expected = whole.read_bytes()
    part = len(expected) // THREADS // BLOCK * BLOCK
    guests = [
        Guest(clone, expected[number * part : (number + 1) * part], number * part, seed * THREADS + number)
        for number in range(THREADS)
    ]
    print("begun", flush=True)
    with ThreadPoolExecutor(THREADS) as pool:
        wrong = [line for line in pool.map(lambda guest: guest.run(operations), guests) if line]
        if not wrong and check:
            time.sleep(0)
            wrong = [line for line in pool.map(lambda guest: guest.check(), guests) if line]
    print("; ".join(wrong) or "right", flush=True)


if __name__ == "__main__":
    main()
