"""Locks and pins: who works on what, who uses what."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from castoff.store.locks import exclusive, hold, lock, try_lock


async def test_one_task_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    """Twenty tasks that want one lock are never two inside."""
    inside, most, turns = 0, 0, 0

    async def work() -> None:
        nonlocal inside, most, turns
        async with lock(tmp_path / "lock"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1
            turns += 1

    await asyncio.gather(*(work() for _ in range(20)))
    assert (most, turns) == (1, 20)


async def test_a_released_lock_leaves_no_file(tmp_path: Path) -> None:
    """The directory of locks does not grow with every layer ever built."""
    async with lock(tmp_path / "lock"):
        assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]
    assert not any(tmp_path.iterdir())


async def test_waiting_for_a_lock_can_be_cancelled(tmp_path: Path) -> None:
    """A waiter that is cancelled goes away, and the lock is got by the next one."""
    held = try_lock(tmp_path / "lock")
    assert held is not None

    async def wait() -> None:
        async with lock(tmp_path / "lock"):
            raise AssertionError("it was held")

    waiter = asyncio.create_task(wait())
    await asyncio.sleep(0.02)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    held.release()
    again = try_lock(tmp_path / "lock")
    assert again is not None
    again.release()


def test_a_killed_holder_holds_no_more(tmp_path: Path) -> None:
    """The kernel lets go of a lock whose holder died by SIGKILL."""
    script = (
        "import sys, time; from pathlib import Path; from castoff.store.locks import try_lock\n"
        "held = try_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "lock")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert try_lock(tmp_path / "lock") is None
        process.send_signal(signal.SIGKILL)
    after = try_lock(tmp_path / "lock")
    assert after is not None
    after.release()


def test_a_pinned_directory_is_nobodys_to_remove(tmp_path: Path) -> None:
    """Pins exclude a remover, not each other; the last one to be closed lets it."""
    thing = tmp_path / "thing"
    thing.mkdir()
    first, second = hold(thing), hold(thing)
    assert first is not None
    assert second is not None
    first.close()
    first.close()
    with exclusive(thing) as mine:
        assert not mine
    second.close()
    with exclusive(thing) as mine:
        assert mine


def test_a_pin_ends_with_the_value_that_holds_it(tmp_path: Path) -> None:
    """Nobody needs to close one: the last reference to a stored layer does."""
    pin = hold(tmp_path)
    assert pin is not None
    del pin
    with exclusive(tmp_path) as mine:
        assert mine


def test_what_is_not_there_is_neither_pinned_nor_removed(tmp_path: Path) -> None:
    """Both say so without an error."""
    assert hold(tmp_path / "nothing") is None
    with exclusive(tmp_path / "nothing") as mine:
        assert not mine
