"""The keeper: a process that holds descriptors and does little else: ``python -m castoff.hydrate.keeper STATE [COMMAND...]``.

A machine's clone is safe as long as somebody holds the descriptor of its fanotify group: when the last holder dies, the
kernel lets every waiting reader go, and it reads the hole (castoff.hydrate). The hydrator is a large program that talks to
registries, and may die. So the keeper holds the same descriptors, starts the hydrator, and starts it again when it dies; the
new one takes the descriptors from here and goes on. When the keeper dies, the hydrator starts another
(castoff.hydrate.keeper_client), which is handed them again.

    STATE/hydrate/keeper.sock   packets; a request is one line, with descriptors where it says so; an ID is a name or a path:
        keep ID  + descriptors   -> ok               replaces what is kept under ID
        drop ID                  -> ok               closes them
        list                     -> ok, and each ID after a newline
        take ID                  -> ok + descriptors, or none; they are kept all the same
        hydrator + a pidfd       -> ok               the hydrator's own: restart it when that process ends
        start                    -> ok               start the hydrator, where none runs
    STATE/hydrate/keeper.lock   flock: one keeper for a state directory
    STATE/hydrate/log           what keeper and hydrator say

It ends when it holds nothing, no hydrator runs and nobody is connected. A hydrator of a later version may meet it: requests
are only ever added to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from castoff.hydrate.descriptors import MAX_PACKET, close_all, connect, is_ours, listen, receive, send

__all__ = ["Keeper", "main"]

FIRST_DELAY = 0.05
LONGEST_DELAY = 5.0
"""Seconds between a hydrator's death and its successor's start, doubled from one to the other while each dies young."""
STEADY = 1.0
"""Seconds after which a hydrator counts as having lived, and its successor starts at once."""
GRACE = 2.0
"""Seconds that a keeper stays with nothing to do: who started it has not spoken yet."""
LOG_LIMIT = 1 << 20
_USAGE = """usage: python -m castoff.hydrate.keeper STATE [COMMAND...]

Keeps the descriptors of machines whose data comes in, and a hydrator running (COMMAND, else castoff's own), for the state
directory STATE; goes on in the background, and ends when there is nothing to keep. castoff starts it by itself."""
OWN_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE)
"""Signals that mean something else to us than to a program that we start."""


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} keeper: {text}", file=sys.stderr, flush=True)


class Hydrator:
    """The hydrator's process, whoever started it."""

    def __init__(self, pidfd: int, child: int | None) -> None:
        self.pidfd = pidfd
        self.child = child
        self.started = time.monotonic()

    def end(self) -> None:
        """After its death: reaps it, where it is our child."""
        os.close(self.pidfd)
        if self.child is not None:
            _, status = os.waitpid(self.child, 0)
            _say(f"hydrator {self.child} ended: {os.waitstatus_to_exitcode(status)}")


class Keeper:
    """Descriptors by name, and one hydrator.

    Args:
        listener: The socket to serve.
        command: How the hydrator is started.
    """

    def __init__(self, listener: socket.socket, command: Sequence[str]) -> None:
        self._listener = listener
        self._command = list(command)
        self._held: dict[str, tuple[int, ...]] = {}
        self._connections: dict[int, socket.socket] = {}
        self._hydrator: Hydrator | None = None
        self._delay = 0.0
        self._restart_at: float | None = None
        self._idle_since = time.monotonic()
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    def run(self) -> None:
        """Serves until there is nothing to keep."""
        self._listener.setblocking(False)
        while not self._done():
            for descriptor, _ in self._poll.poll(self._timeout()):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif self._hydrator is not None and descriptor == self._hydrator.pidfd:
                    self._bury()
                elif descriptor in self._connections:
                    self._serve(self._connections[descriptor])
            if self._restart_at is not None and time.monotonic() >= self._restart_at:
                self._start()

    def _done(self) -> bool:
        if self._held or self._hydrator is not None or self._connections:
            self._idle_since = time.monotonic()
            return False
        return time.monotonic() - self._idle_since > GRACE

    def _timeout(self) -> float:
        """Milliseconds until something is to be done without anybody asking."""
        if self._restart_at is not None:
            return max(0.0, self._restart_at - time.monotonic()) * 1000 + 1
        return 60_000 if self._held or self._hydrator is not None or self._connections else GRACE * 1000 / 4

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # it went again, or there are no descriptors left: the next poll tries again
            _say(f"a connection was not accepted: {error}")
            return
        if not is_ours(connection):
            connection.close()
            return
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        self._poll.register(connection, select.POLLIN)

    def _hang_up(self, connection: socket.socket) -> None:
        self._poll.unregister(connection)
        del self._connections[connection.fileno()]
        connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            data, descriptors = receive(connection)
        except BlockingIOError:
            return
        except (OSError, EOFError):
            self._hang_up(connection)
            return
        answer, theirs = self._answer(os.fsdecode(data).split(" ", 1), descriptors)
        try:
            send(connection, answer[:MAX_PACKET], theirs)
        except OSError:  # gone, or it does not read what it asks for
            self._hang_up(connection)

    def _answer(self, words: Sequence[str], descriptors: tuple[int, ...]) -> tuple[bytes, tuple[int, ...]]:
        match words:
            case ["keep", name] if descriptors:
                close_all(self._held.pop(name, ()))
                self._held[name] = descriptors
                return b"ok", ()
            case ["hydrator"] if len(descriptors) == 1:
                self._adopt(descriptors[0])
                return b"ok", ()
        close_all(descriptors)
        match words:
            case ["drop", name]:
                close_all(self._held.pop(name, ()))
                return b"ok", ()
            case ["list"]:
                return os.fsencode("\n".join(["ok", *self._held])), ()
            case ["take", name]:
                return (b"ok", self._held[name]) if name in self._held else (b"none", ())
            case ["start"]:
                if self._hydrator is None:
                    self._start()
                return b"ok", ()
        return b"error: not understood", ()

    def _adopt(self, pidfd: int) -> None:
        """The hydrator says who it is. Where it is our child, its pidfd stays the one that we have."""
        current = self._hydrator
        if current is not None:
            if _pid_of(current.pidfd) == _pid_of(pidfd):
                os.close(pidfd)
                return
            # Ours found the place taken by one of our predecessor's, and is about to end.
            self._forget(current)
        self._watch(Hydrator(pidfd, None))
        self._restart_at = None

    def _forget(self, hydrator: Hydrator) -> None:
        self._poll.unregister(hydrator.pidfd)
        if hydrator.child is not None:
            os.kill(hydrator.child, signal.SIGKILL)
        hydrator.end()

    def _watch(self, hydrator: Hydrator) -> None:
        self._hydrator = hydrator
        self._poll.register(hydrator.pidfd, select.POLLIN)

    def _start(self) -> None:
        self._restart_at = None
        try:
            child = os.posix_spawn(self._command[0], self._command, os.environ, setsid=True, setsigdef=OWN_SIGNALS)
        except OSError as error:
            _say(f"{self._command[0]} cannot be started: {error}")
            self._later()
            return
        _say(f"hydrator {child} started, {len(self._held)} machines held")
        self._watch(Hydrator(os.pidfd_open(child), child))

    def _bury(self) -> None:
        """The hydrator is dead: another one is started, where there is anything for it to go on with."""
        hydrator = self._hydrator
        assert hydrator is not None
        self._poll.unregister(hydrator.pidfd)
        hydrator.end()
        self._hydrator = None
        if time.monotonic() - hydrator.started >= STEADY:
            self._delay = 0.0
        if self._held:
            self._later()

    def _later(self) -> None:
        self._restart_at = time.monotonic() + self._delay
        self._delay = min(max(self._delay * 2, FIRST_DELAY), LONGEST_DELAY)


def _pid_of(pidfd: int) -> int:
    """The process behind a pidfd, -1 once it is dead (proc(5), fdinfo)."""
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pid:"))


def _become_the_keeper(directory: Path) -> bool:
    """Takes the lock; False where another keeper answers."""
    lock = os.open(directory / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + 10
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(OSError):  # it is starting, or ending
                connect(directory / "keeper.sock").close()
                return False
        else:
            return True
        if time.monotonic() > deadline:
            raise SystemExit(f"another process holds {directory}/keeper.lock and does not answer")
        time.sleep(0.005)


def _detach(directory: Path) -> None:
    """Goes on as a child in a session of its own. That the parent ends tells who started us that the socket is there."""
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # The end of a session, or of the whole host: machines may go on for a while, and must not read holes meanwhile.
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    log = directory / "log"
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.rename(directory / "log.1")
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    close_all([null, output])


def main(arguments: Sequence[str]) -> None:
    """Keeps, until there is nothing to keep."""
    if not arguments or arguments[0].startswith("-"):  # by hand rather than with argparse: a keeper should be small
        asked = list(arguments) in (["-h"], ["--help"])
        print(_USAGE, file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    state = Path(arguments[0]).absolute()
    command = arguments[1:] or [sys.executable, "-m", "castoff.hydrate", "--state", str(state)]
    directory = state / "hydrate"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _become_the_keeper(directory):
        return
    listener = listen(directory / "keeper.sock")
    _detach(directory)
    _say(f"{os.getpid()} keeps {state}")
    Keeper(listener, command).run()
    (directory / "keeper.sock").unlink(missing_ok=True)
    _say(f"{os.getpid()} has nothing to keep")


if __name__ == "__main__":
    main(sys.argv[1:])
