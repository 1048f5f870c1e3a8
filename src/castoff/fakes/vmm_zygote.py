"""The process that castoff.fakes.vmm's machines are forked from: it has imported all that they need.

    python -m castoff.fakes.vmm_zygote, with a SOCK_SEQPACKET socket as its standard input

A message is a JSON object (``initramfs``, ``name``, ``owner``) with four descriptors: the machine's own socket to whoever starts
it, the listeners of its two channels, its console. The machine answers on its socket: ``+``, its process id and start time, or
``-`` and why not; ``0`` when it powered off. The process ends with the other end of its standard input; its machines do not.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Final

from castoff.fakes.vmm_guest import Guest
from castoff.fakes.vmm_settings import read_settings

__all__ = ["main"]

_MESSAGE: Final = 8192
_DESCRIPTORS: Final = 4


def main() -> None:
    """Forks a machine for each message."""
    requests = socket.socket(fileno=0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # machines leave no zombies
    while True:
        message, ancillary, _, _ = requests.recvmsg(_MESSAGE, socket.CMSG_SPACE(_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        if os.fork() == 0:
            requests.close()
            os._exit(_machine(json.loads(message), list(descriptors)))
        for descriptor in descriptors:
            os.close(descriptor)


def _machine(request: dict[str, object], descriptors: list[int]) -> int:
    """A machine from its start to its end; the process's exit status."""
    starter, channel, control = (socket.socket(fileno=descriptor) for descriptor in descriptors[:3])
    console = descriptors[3]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        os.setsid()
        command = read_settings(Path(str(request["initramfs"])))
        _take_name(str(request["name"]))
        if isinstance(owner := request["owner"], int):
            os.setgroups([])
            os.setresgid(owner, owner, owner)
            os.setresuid(owner, owner, owner)
        guest = Guest((channel, control), command, lambda line: _say(console, line))
        started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        starter.send(f"+{os.getpid()} {started}".encode())
    except Exception as error:
        _tell(starter, f"-{type(error).__name__}: {error}".encode()[:1000])
        return 1
    try:
        guest.run()
    except Exception:
        import traceback

        _say(console, traceback.format_exc())
        return 1
    _tell(starter, b"0")
    return 0


def _take_name(name: str) -> None:
    """As VMMs have it in their arguments, so that one that nobody wrote down is found (castoff.machine.removal)."""
    Path("/proc/self/comm").write_text(name[:15])
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])  # arg_start and arg_end
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(f"castoff-{name}".encode()[: end - start - 1].ljust(end - start, b"\0"))


def _say(console: int, line: str) -> None:
    os.write(console, line.encode(errors="replace") + b"\n")


def _tell(starter: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # whoever started it is gone
        starter.send(message)


if __name__ == "__main__":
    main()
