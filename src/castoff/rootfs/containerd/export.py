"""Makes an ext4 image of a mounted snapshot: a program of its own, run as ``python -I export.py`` with a job on stdin.

It enters a mount namespace of its own, so that its mounts are nobody else's and go with it however it ends, mounts the snapshot
there, and becomes mke2fs. It dies with whoever started it (PR_SET_PDEATHSIG outlives exec). Only the standard library is
used: the program is started by its path, with nothing installed on its sys.path.

The job, as JSON: ``{"mounts": [{"type", "source", "options"}], "directory": ..., "command": ["mke2fs", ...]}``
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_NOATIME = 0x1, 0x2, 0x4, 0x8, 0x20, 0x400
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1

_FLAGS = {
    "ro": MS_RDONLY,
    "rw": 0,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "noatime": MS_NOATIME,
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
}
"""Options that mount(2) takes as flags; the others go to the filesystem as text."""


def main() -> None:
    """Reads the job and does it; exits with 2 and a line on stderr where the mount fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    job = json.load(sys.stdin)
    if os.getppid() != parent:  # it died before the line above took effect
        sys.exit(2)
    enter_namespace(libc)
    for mount in job["mounts"]:
        mount_one(libc, mount["type"], mount["source"], mount["options"], job["directory"])
    command = job["command"]
    os.execvp(command[0], command)


def enter_namespace(libc: ctypes.CDLL) -> None:
    """Enters a mount namespace whose mounts show in no other; the root directory stays what it was, the working one is it.

    Mounts are made private from the namespace's own root on. In a chroot, "/" may be no mount point, which mount(2) answers with
    EINVAL, and the mount that it lies in has no path there at all. Entering the namespace that one is in already leads to its
    root (setns(2); mntns_install in fs/namespace.c), from where fchdir and chroot lead back.
    """
    check(libc.unshare(CLONE_NEWNS), "entering a mount namespace")
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the new namespace's, so not before that
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    check(libc.setns(namespace, CLONE_NEWNS), "going to the root of the mount namespace")
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "making mounts private")
    os.fchdir(root)
    os.chroot(".")


def mount_one(libc: ctypes.CDLL, kind: str, source: str, options: Sequence[str], directory: str) -> None:
    """Mounts one of containerd's mounts at ``directory``, read-only whatever it says."""
    flags = MS_RDONLY
    data = []
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        else:
            data.append(option)
    if kind == "overlay":
        data = shortened(data)
    text = ",".join(data).encode()
    check(
        libc.mount(os.fsencode(source), os.fsencode(directory), kind.encode(), flags, text or None), f"mounting {kind} {source}"
    )
    if flags & MS_BIND:  # mount(2): a bind mount takes no other flag at first
        check(libc.mount(b"none", os.fsencode(directory), None, MS_REMOUNT | MS_BIND | MS_RDONLY, None), "making it read-only")


def shortened(data: Sequence[str]) -> list[str]:
    """An overlay's options with its lower directories relative to where they all are, which becomes the working directory.

    mount(2) takes a page of text, and an image of fifty layers has more than that in full paths.
    """
    lower = next((option.removeprefix("lowerdir=").split(":") for option in data if option.startswith("lowerdir=")), [])
    if len(lower) < 2:
        return list(data)
    common = os.path.commonpath(lower)
    os.chdir(common)
    relative = "lowerdir=" + ":".join(os.path.relpath(path, common) for path in lower)
    # Upper and work directory would make it writable; a read-only view has none, a writable snapshot does.
    return [relative if option.startswith("lowerdir=") else option for option in data]


def check(result: int, what: str) -> None:
    """Ends the program where a system call failed."""
    if result:
        print(f"{what}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
