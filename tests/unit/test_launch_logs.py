"""Machines' logs: lines with time and stream, turned over when full, followed while they are written."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from castoff.agent.launch.logs import Logs

MACHINE = "0123456789abcd"


async def test_lines_of_two_streams(tmp_path: Path) -> None:
    """Pieces become lines, each stream by itself; what is left at the end is one; what is no UTF-8 is shown."""
    logs = Logs(tmp_path)
    writer = logs.writer(MACHINE)
    for stream, data, offset in ((1, b"a", 0), (2, b"err\n", 0), (1, b"b\r\nc\n\nd", 1), (2, b"\xff\n", 4)):
        writer.write(stream, data, offset)
    writer.close()
    read = [(line.stream, line.message) async for line in logs.read(MACHINE)]
    assert read == [(2, "err"), (1, "ab"), (1, "c"), (1, ""), (2, "�"), (1, "d")]
    assert [line.message async for line in logs.read(MACHINE, tail=2)] == ["�", "d"]
    assert [line async for line in logs.read("f" * 14)] == []
    logs.remove(MACHINE)
    logs.remove(MACHINE)
    assert logs.machines() == []


async def test_full_files_are_turned_over(tmp_path: Path) -> None:
    """They are bounded in size and number; whoever follows misses nothing."""
    logs = Logs(tmp_path)
    writer = logs.writer(MACHINE)
    writer.write(1, b"begin\n", 0)
    seen: list[str] = []

    async def follow() -> None:
        async for line in logs.read(MACHINE, follow=True):
            seen.append(line.message)  # noqa: PERF401 - looked at while it grows

    following = asyncio.create_task(follow())
    while not seen:
        await asyncio.sleep(0.01)
    numbered = [f"{number:06} {'x' * 9000}" for number in range(1200)]
    for number, line in enumerate(numbered):
        writer.write(1, line.encode() + b"\n", 6 + number * (len(line) + 1))
    while len(seen) < 1201:
        await asyncio.sleep(0.05)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert seen == ["begin", *numbered]
    for number, line in enumerate(numbered * 4):
        writer.write(2, line.encode() + b"\n", number * (len(line) + 1))
    writer.close()
    files = sorted(file.name for file in (tmp_path / MACHINE).iterdir())
    assert files == ["1", "2", "3", "current", "written"]
    assert sum(file.stat().st_size for file in (tmp_path / MACHINE).iterdir()) < 4 * (9 << 20)


async def test_what_comes_again_is_written_once(tmp_path: Path) -> None:
    """A guest repeats what was not acknowledged: a writer that resumes passes it over, up to the last whole line."""
    logs = Logs(tmp_path)
    killed = logs.writer(MACHINE)
    killed.write(1, b"one\ntw", 0)
    resumed = logs.writer(MACHINE, resume=True)
    resumed.write(1, b"one\ntwo\n", 0)
    resumed.write(2, b"err\n", 0)
    resumed.close()
    another_run = logs.writer(MACHINE)
    another_run.write(1, b"one\n", 0)
    another_run.close()
    assert [line.message async for line in logs.read(MACHINE)] == ["one", "two", "err", "one"]
    killed.close()


async def test_a_run_that_is_let_go_of_in_the_midst_of_a_line(tmp_path: Path) -> None:
    """What is left is written when a writer closes, and not once more when the guest repeats it."""
    logs = Logs(tmp_path)
    first = logs.writer(MACHINE)
    first.write(1, b"abc", 0)
    first.close()
    second = logs.writer(MACHINE, resume=True)
    second.write(1, b"abcdef\n", 0)
    second.close()
    assert [line.message async for line in logs.read(MACHINE)] == ["abc", "def"]


async def test_a_full_disk_loses_lines_and_says_so(tmp_path: Path) -> None:
    """The writer never fails for it; no line is cut in two; when there is room again it goes on."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "castoff-test", tmp_path], check=True)
    try:
        logs = Logs(tmp_path / "logs")
        writer = logs.writer(MACHINE)
        offset = 0
        for line in (b"first\n", *[b"x" * 1000 + b"\n"] * 200):
            writer.write(1, line, offset)
            offset += len(line)
        kept = [line.message async for line in logs.read(MACHINE)]
        assert kept[0] == "first" and 50 < len(kept) < 150
        subprocess.run(["mount", "-o", "remount,size=4m", tmp_path], check=True)
        writer.write(1, b"last\n", offset)
        writer.close()
        after = [line.message async for line in logs.read(MACHINE)]
        assert after == [*kept, f"castoff: {201 - len(kept)} lines were lost: the disk refused them", "last"]
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)  # also where the writer was left open


async def test_a_follower_that_nobody_wants_ends(tmp_path: Path) -> None:
    """Though nothing is written that could tell."""
    logs = Logs(tmp_path)
    wanted = iter([True, True, False])
    async with asyncio.timeout(10):
        assert [line async for line in logs.read(MACHINE, follow=True, goes_on=lambda: next(wanted))] == []


async def test_a_follower_that_is_slow_misses_nothing_that_is_kept(tmp_path: Path) -> None:
    """The files were turned over several times since it looked: it has all that the newest files hold, in order."""
    logs = Logs(tmp_path)
    writer = logs.writer(MACHINE)
    writer.write(1, b"begin\n", 0)
    following = logs.read(MACHINE, follow=True)
    assert (await anext(following)).message == "begin"
    lines = [f"{number:06} {'x' * 9000}" for number in range(2500)]
    writer.write(1, ("\n".join(lines) + "\n").encode()[: 1 << 20], 6)
    writer.close()
    writer = logs.writer(MACHINE)
    for number, line in enumerate(lines):
        writer.write(1, line.encode() + b"\n", number * (len(line) + 1))
    writer.close()
    seen = [""]
    async with asyncio.timeout(30):
        while seen[-1] != lines[-1]:
            seen.append((await anext(following)).message)
    assert seen[-2500:] == lines


async def test_following_ends_after_all_that_was_written(tmp_path: Path) -> None:
    """Also what was written while it was asked whether it goes on."""
    logs = Logs(tmp_path)
    writer = logs.writer(MACHINE)
    answers = iter([(True, 0), (True, 5), (False, 10)])

    def goes_on() -> bool:
        going, offset = next(answers, (False, -1))
        if offset >= 0:
            writer.write(1, b"line\n", offset)
        return going

    assert len([line async for line in logs.read(MACHINE, follow=True, goes_on=goes_on)]) == 3
    writer.close()
