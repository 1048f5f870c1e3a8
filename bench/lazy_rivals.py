"""To the same READY over the same link as people do it today: containerd's pull and unpack, and QEMU reading the disk by HTTP."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.daemons import daemon

from bench import measure
from bench.lazy_lab import PROGRAM, Lab
from bench.measure import Failed
from castoff.store.rootfs import FILE

__all__ = ["containerd", "lacks", "over_http"]

_PORT = 5002
_SECONDS = 60
"""In which that machine must be ready."""
_BINARY = "qemu-system-x86_64"
_WRAPPER = """#!{python}
import os, sys
base = "driver=raw,node-name=drive0,read-only=on,file.driver=http,file.url={url}"
words = [base if word.startswith("driver=raw,node-name=drive0,") else word for word in sys.argv[1:]]
os.execv({binary!r}, [{binary!r}, *words])
"""
"""In QEMU's place: the machine's base drive is what the web server has, and not the file that castoff opened."""


def containerd(lab: Lab) -> float:
    """Seconds until containerd has pulled and unpacked the image, on disk; nothing of it is left behind."""
    stage = lab.warm
    ctr = ["ctr", "--address", str(stage.containerd.socket), "--namespace", "lazy"]
    image = f"{lab.far.host}/plain/{lab.image}:latest"
    begun = time.perf_counter()
    measure.run([*ctr, "images", "pull", "--plain-http", "--snapshotter", "overlayfs", image], watch=False)
    measure.run(["sync", "--file-system", stage.containerd.root], watch=False)
    seconds = time.perf_counter() - begun
    measure.run([*ctr, "images", "rm", "--sync", image], watch=False)
    return seconds


def lacks() -> str:
    """What the other way needs and this host does not have; empty where all is here."""
    if not any(Path("/usr/lib").glob("*/qemu/block-curl.so")):
        return "qemu-block-extra is not installed"
    return "" if shutil.which("nginx") else "nginx is not installed"


def over_http(lab: Lab) -> float:
    """Seconds to READY of a machine whose base is an ext4 on an nginx behind the link, read by QEMU's curl block driver.

    Raises:
        Failed: It was not ready within a minute. QEMU 7.2 with libcurl 7.88 (Debian 12) stops so after its first read.
    """
    (rootfs,) = (lab.warm.store / "rootfs").glob(f"*/{FILE}")
    directory = lab.cold.directory / "http"
    directory.mkdir(exist_ok=True)
    wrapper, settings = directory / "qemu", directory / "castoff.toml"
    url = f"http://{lab.far.host.partition(':')[0]}:{_PORT}/{FILE}"
    wrapper.write_text(_WRAPPER.format(python=sys.executable, url=url, binary=shutil.which(_BINARY)))
    wrapper.chmod(0o755)
    # Root's: a uid of the VMM's own need not be able to run this Python.
    settings.write_text(f'vmm.own_user = false\nvmm.qemu.accelerator = "tcg"\nvmm.qemu.binary = {json.dumps(str(wrapper))}\n')
    words = ("run", "--vmm", "qemu", "--network", "none", "--clone", "overlay", lab.reference("plain", lab.near.host), *PROGRAM)
    command = [lab.warm.castoff()[0], "--config", str(settings), "--state", str(lab.warm.state), "--quiet", *words]
    with _nginx(lab, directory, rootfs.parent):
        before = lab.far.received()
        begun = time.perf_counter()
        with measure.started(command) as process:
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], _SECONDS)[0]:
                raise Failed(f"nothing is ready after {_SECONDS} s and {(lab.far.received() - before) >> 10} KiB over the link")
            line = process.stdout.readline()
            seconds = time.perf_counter() - begun
            _, errors = process.communicate(timeout=120)
        if process.returncode != 0 or not line.strip():
            raise Failed(f"castoff run over HTTP ended with {process.returncode}: {errors.strip()[-1500:]}")
        if lab.far.received() - before < 1 << 20:
            raise Failed("nothing came over the link: QEMU has read something else")
    return seconds


@contextlib.contextmanager
def _nginx(lab: Lab, directory: Path, root: Path) -> Iterator[None]:
    config, log = directory / "nginx.conf", directory / "nginx.log"
    config.write_text(
        f"daemon off; user root; pid {directory}/nginx.pid; error_log {log}; events {{}}\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n"
        f"client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;\n"
        f"uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;\n"
        f"server {{ listen {_PORT}; root {root}; }} }}\n"
    )
    command = ["ip", "netns", "exec", lab.far.namespace, "nginx", "-c", str(config), "-e", str(log)]
    url = f"http://{lab.far.host.partition(':')[0]}:{_PORT}/{FILE}"
    with daemon(command, directory / "nginx.out") as process:
        for _ in range(200):
            if process.poll() is not None:
                raise Failed(f"nginx ended: {log.read_text()[-500:]}")
            if subprocess.run(["curl", "-sfI", url], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.02)
        yield
