"""SIGHUP and the watchdog of `castoff agent`, as systemd has them."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from agents import agent
from machines import Castoff, castoff_state, eventually


def certify(directory: Path, name: str) -> None:
    """A new certificate for ``name``, and its key."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    files = ["-subj", f"/CN={name}", "-keyout", directory / "key.pem", "-out", directory / "certificate.pem"]
    subprocess.run([*command, *files], check=True, capture_output=True)


def served(port: int) -> bytes:
    """The certificate that a new connection gets; DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 20) as plain, context.wrap_socket(plain) as connection:
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


@pytest.mark.timeout(600)
def test_the_certificate_is_read_again(kernels: Path, tmp_path: Path) -> None:
    """Where it fits its key; what does not fit changes nothing, and other settings are named. systemd is told of all of it."""
    certify(tmp_path, "old")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    config = tmp_path / "config.toml"
    text = (
        f'[agent]\nlisten = "127.0.0.1:{port}"\ntls_certificate = "{tmp_path}/certificate.pem"\ntls_key = "{tmp_path}/key.pem"\n'
    )
    config.write_text(text)
    with castoff_state(kernels) as state, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(60)
        env = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        env.pop("WATCHDOG_PID", None)

        def next_state() -> bytes:
            while (said := told.recv(200)) == b"WATCHDOG=1":
                pass
            return said

        with agent(Castoff(state.state, state.image, config), env=env) as running:
            assert next_state() == b"READY=1"
            assert [told.recv(200) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            old = served(port)

            def reload() -> None:
                running.process.send_signal(signal.SIGHUP)
                assert next_state().startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                assert next_state() == b"READY=1"

            key = (tmp_path / "key.pem").read_bytes()
            certify(tmp_path, "new")
            fits = (tmp_path / "key.pem").read_bytes()
            (tmp_path / "key.pem").write_bytes(key)
            reload()
            eventually("it says why", lambda: "not reloaded, all stays as it was" in running.said)
            assert served(port) == old
            (tmp_path / "key.pem").write_bytes(fits)
            config.write_text(text + 'region = "moon"\n[vmm.limits]\npids = 300\n')
            reload()
            assert served(port) != old
            assert "they need a restart of the agent: agent.region, vmm.limits.pids" in running.said
            assert fits.decode().splitlines()[1] not in running.said
