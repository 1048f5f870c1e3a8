"""Real NATS servers with JetStream for tests: one, or a cluster of three, on loopback, ended and started again at will."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.daemons import free_port, tail, wait_for

__all__ = ["NatsServer", "nats_cluster", "nats_server"]


class NatsServer:
    """A server; its port and files stay when it is started again."""

    def __init__(self, directory: Path, extra: str = "", *, name: str = "n1", port: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name, self.port = name, port or free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._config, self._log = directory / "nats.conf", directory / "log"
        self._config.write_text(
            f'server_name: {name}\nlisten: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{directory / "data"}", max_mem: 256MB, max_file: 1GB }}\n{extra}\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; returns when it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(["nats-server", "-c", self._config], stdout=log, stderr=log, start_new_session=True)
        wait_for("nats-server", self._listens, self._process, self._log)

    def _listens(self) -> bool:
        return "Server is ready" in tail(self._log) or "Server is ready" in self._log.read_text(errors="replace")

    def stop(self) -> None:
        """SIGTERM."""
        self._end(kill=False)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(kill=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It stands still for the block: connections stay open, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill() if kill else process.terminate()
            process.wait(20)
        self._log.write_text("")


@contextlib.contextmanager
def nats_server(directory: Path, extra: str = "") -> Iterator[NatsServer]:
    """One server for the block; ``extra`` is put into its configuration."""
    server = NatsServer(directory, extra)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def nats_cluster(directory: Path) -> Iterator[list[NatsServer]]:
    """Three servers of one cluster."""
    routes = [free_port() for _ in range(3)]
    listed = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    servers = [
        NatsServer(
            directory / f"n{number}",
            f'cluster {{ name: castoff, listen: "127.0.0.1:{port}", routes: [{listed}] }}',
            name=f"n{number}",
        )
        for number, port in enumerate(routes, start=1)
    ]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()
