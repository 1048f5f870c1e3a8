"""The loop-mounted XFS store: made once, found again by itself, never twice, and copies where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from castoff.errors import Conflict, Invalid, NoSpace, Unsupported
from castoff.image.digest import Digest
from castoff.store import loop
from castoff.store.extents import probe_reflink
from castoff.store.settings import StoreSettings
from castoff.store.store import Store

SIZE = 1 << 30
SETTINGS = StoreSettings(backing="loop", loop_size=SIZE)


AS_NOBODY = """
import os, subprocess, sys, tempfile
from pathlib import Path
from castoff.errors import Unauthorized
from castoff.store import extents, loop  # while Python's own files may still be read
from castoff.store.store import Store
os.setgid(65534)
os.setuid(65534)
try:
    Store.open(Path(sys.argv[1]))
except Unauthorized as error:
    print(error)
"""
"""Opens a store as another user, and prints the error."""


@pytest.fixture
def state(daemon_directory: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A state directory on a filesystem without reflinks; its store is unmounted in the end."""
    daemon_directory.chmod(0o711)
    path = daemon_directory / "states" / str(abs(hash(request.node.name)))
    path.mkdir(parents=True)
    yield path
    for mount in (path / "store", path):
        subprocess.run(["umount", str(mount)], capture_output=True, check=False)
    assert without_loops(path)


def without_loops(state: Path) -> bool:
    """Whether no loop device has the store's file: the last close of one may be anybody's who was just looking at it."""
    deadline = time.monotonic() + 10
    while loops_of(state):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def loops_of(state: Path) -> list[str]:
    """Loop devices that have the store's file."""
    listed = subprocess.run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"], capture_output=True, text=True)
    return [line.split()[0] for line in listed.stdout.splitlines() if str(state / "store.xfs") in line]


def test_it_is_made_once_and_said_once(state: Path) -> None:
    """The first open makes an XFS that reflinks and says so in one line; the second finds it and says nothing."""
    lines: list[str] = []
    store = Store.open(state, SETTINGS, notice=lines.append)
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert str(state / "store.xfs") in lines[0]
    assert store.reflink
    assert probe_reflink(store.machines)
    assert (state / "machines").resolve() == store.machines
    assert Store.open(state, SETTINGS, notice=lines.append).backing == store.backing
    assert len(lines) == 1
    assert (state / "store.xfs").stat().st_blocks * 512 < 100 << 20 < SIZE == (state / "store.xfs").stat().st_size


def test_it_is_mounted_again_after_an_unmount(state: Path) -> None:
    """As after a reboot: what was in it is there, the machines too, and the loop device had gone with the mount."""
    lines: list[str] = []
    store = Store.open(state, SETTINGS, notice=lines.append)
    (store.machines / "m").mkdir()
    assert store.unmount()
    assert without_loops(state)
    assert not (state / "machines").exists()  # a dangling link: nothing can be written below the mount point by mistake
    assert not store.unmount()
    again = Store.open(state, SETTINGS, notice=lines.append)
    assert (state / "machines" / "m").is_dir()
    assert again.reflink
    assert len(lines) == 1


def test_a_store_in_use_is_not_unmounted(state: Path) -> None:
    """The error says so, and nothing changed."""
    store = Store.open(state, SETTINGS)
    with (store.root / "tmp" / "open").open("w"), pytest.raises(Conflict, match="in use"):
        store.unmount()
    assert Store.open(state, SETTINGS).backing == store.backing


def test_eight_processes_make_one(state: Path) -> None:
    """All at once, from nothing: one file, one loop device, one mount, and one line."""
    script = (
        "import sys; from pathlib import Path; from castoff.store.store import Store; "
        "from castoff.store.settings import StoreSettings\n"
        f"store = Store.open(Path(sys.argv[1]), StoreSettings(backing='loop', loop_size={SIZE}), notice=print)\n"
        "(store.root / 'tmp' / sys.argv[2]).touch()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(state), f"p{number}"], stdout=subprocess.PIPE, text=True)
        for number in range(8)
    ]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert sum(text.count("\n") for text in said) == 1
    assert len(loops_of(state)) == 1
    assert len([line for line in Path("/proc/mounts").read_text().splitlines() if str(state) in line]) == 1
    assert sorted(path.name for path in (state / "store" / "tmp").iterdir()) == [f"p{number}" for number in range(8)]


def test_a_mount_in_another_namespace_gets_no_second_loop(state: Path) -> None:
    """A service with a mount namespace of its own has it mounted: the same device is mounted here, not the file again."""
    settings = f"StoreSettings(backing='loop', loop_size={SIZE})"
    script = (
        "import sys; from pathlib import Path; from castoff.store.store import Store; "
        "from castoff.store.settings import StoreSettings\n"
        f"store = Store.open(Path(sys.argv[1]), {settings}); (store.root / 'tmp' / 'there').touch()\n"
        "print('mounted', flush=True); sys.stdin.read()"
    )
    # A mount of its own that shares nothing, whatever the host's root does: unshare's own "private" wants "/" to be a mount.
    subprocess.run(["mount", "--bind", str(state), str(state)], check=True)
    subprocess.run(["mount", "--make-private", str(state)], check=True)
    command = ["unshare", "--mount", "--propagation", "unchanged", sys.executable, "-c", script, str(state)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mounted\n"
        assert not (state / "store").is_mount()
        store = Store.open(state, SETTINGS)
        assert (store.root / "tmp" / "there").exists()
        assert len(loops_of(state)) == 1


def test_a_crash_before_the_last_step_is_mended(state: Path) -> None:
    """Made but never mounted; mounted but never written down: the next open goes on from there."""
    loop.make_filesystem(state / "store.xfs", SIZE)
    (state / "store.xfs.new").write_bytes(b"of one that died in mkfs")
    assert Store.open(state, SETTINGS).reflink
    (state / "store" / ".castoff").unlink()
    assert Store.open(state, SETTINGS).backing.kind == "loop"
    assert len(loops_of(state)) == 1


def test_a_store_that_copies_and_is_empty_becomes_better(state: Path) -> None:
    """Made without root or xfsprogs, opened with them before anything was put in: it gets its reflinks."""
    assert not Store.open(state, StoreSettings(backing="native")).reflink
    assert Store.open(state, StoreSettings(backing="native")).backing.kind == "native"
    assert Store.open(state, StoreSettings(loop_size=SIZE)).reflink


def test_a_store_that_holds_something_stays_where_it_is(state: Path) -> None:
    """Mounting over it would hide what is in it."""
    store = Store.open(state, StoreSettings(backing="native"))
    (store.root / "layers" / "x").mkdir()
    assert not Store.open(state, StoreSettings(loop_size=SIZE)).reflink
    assert not (state / "store.xfs").exists()


def test_too_little_room_means_copies_and_is_said(state: Path) -> None:
    """In one line with the reason, which the store remembers; asked for explicitly, it is an error."""
    lines: list[str] = []
    store = Store.open(state, StoreSettings(loop_size=1 << 20), notice=lines.append)
    assert not store.reflink
    assert len(lines) == 1
    assert "too little for an XFS" in lines[0]
    assert "too little for an XFS" in store.backing.why
    with pytest.raises(Unsupported, match="too little"):
        Store.open(state.parent / "other", StoreSettings(backing="loop", loop_size=1 << 20))


def test_a_reflinking_filesystem_needs_nothing(scratch_xfs: Path) -> None:
    """No file, no mount, no line."""
    lines: list[str] = []
    store = Store.open(scratch_xfs / "state", notice=lines.append)
    assert (store.backing.kind, store.reflink, lines) == ("native", True, [])


def test_a_store_moved_to_another_filesystem_is_tried_again(scratch_xfs: Path, tmp_path: Path) -> None:
    """What was written down on XFS is not believed on ext4."""
    there = Store.open(scratch_xfs / "state", StoreSettings(backing="native"))
    assert there.reflink
    subprocess.run(["cp", "-a", str(scratch_xfs / "state"), str(tmp_path / "state")], check=True)
    here = Store.open(tmp_path / "state", StoreSettings(backing="native"))
    assert here.reflink == probe_reflink(tmp_path)
    assert here.backing.device == here.root.stat().st_dev


def test_nobody_elses_store_is_opened(state: Path) -> None:
    """Another user gets one clear error, mounted or not."""
    Store.open(state, SETTINGS).unmount()
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(state)], capture_output=True, text=True, check=True)
        assert "--state" in done.stdout, done.stderr
        Store.open(state, SETTINGS)


async def test_what_is_removed_is_given_back_to_the_disk_below(state: Path) -> None:
    """The sparse file shrinks with a prune, and when room is looked for."""
    store = Store.open(state, SETTINGS)
    empty = (state / "store.xfs").stat().st_blocks

    async def build(directory: Path) -> None:
        (directory / "segment").write_bytes(os.urandom(64 << 20))
        (directory / "index").write_bytes(b"index")

    await store.build_layer(Digest.of(b"layer"), build)
    assert (state / "store.xfs").stat().st_blocks - empty >= (60 << 20) // 512
    await store.prune()
    assert (state / "store.xfs").stat().st_blocks - empty < (8 << 20) // 512
    (store.root / "tmp" / "file").write_bytes(os.urandom(64 << 20))
    os.sync()
    (store.root / "tmp" / "file").unlink()
    with pytest.raises(NoSpace):
        store.require(1 << 60)
    assert (state / "store.xfs").stat().st_blocks - empty < (8 << 20) // 512


def test_the_lesser_of_two_disks_counts(state: Path) -> None:
    """The XFS may say that there is more than the filesystem that its file lies on has: then that is what there is."""
    below = state / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", str(below)], check=True)
    try:
        store = Store.open(below / "state", StoreSettings(backing="loop", loop_size=4 << 30, reserve=0))
        assert os.statvfs(store.root).f_bavail * os.statvfs(store.root).f_frsize > 3 << 30
        assert store.free() < 600 << 20
        with pytest.raises(NoSpace):
            store.require(1 << 30)
        store.unmount()
    finally:
        subprocess.run(["umount", "-R", str(below)], check=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"kind": "tape", "reflink": true, "device": 1}'])
def test_a_broken_marker_is_refused(tmp_path: Path, content: bytes) -> None:
    """One line that names the file."""
    store = Store.open(tmp_path / "state", StoreSettings(backing="native"))
    (store.root / ".castoff").write_bytes(content)
    with pytest.raises(Invalid, match=r"\.castoff is not what castoff wrote"):
        Store.open(tmp_path / "state", StoreSettings(backing="native"))


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    """Rather than misread."""
    store = Store.open(tmp_path / "state", StoreSettings(backing="native"))
    marker = store.root / ".castoff"
    marker.write_bytes(marker.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(Unsupported, match="version 2"):
        Store.open(tmp_path / "state", StoreSettings(backing="native"))


def test_without_root_an_unmounted_store_says_who_can_mount_it(state: Path) -> None:
    """The directory may be the user's own: mounting still is not."""
    Store.open(state, SETTINGS).unmount()
    for path in (state, state / "store", state / "store.xfs", state / ".store.lock"):
        os.chown(path, 65534, 65534)
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(state)], capture_output=True, text=True, check=True)
    assert "only root may mount it" in done.stdout, done.stderr
