"""Debian's cloud kernel, downloaded and extracted, never installed: installing it drags in a boot loader.

apt resolves and verifies the package as it does every other. Where the host's package lists are missing or old (a fresh
container), lists of castoff's own are fetched into the cache; the host's are never written, and root is not needed.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import signal
from pathlib import Path
from typing import Final

from castoff.errors import Unavailable, Unsupported
from castoff.vmm.settings import KernelSettings

__all__ = ["download_kernel"]

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_CONCRETE: Final = re.compile(r"linux-image-\d[\w.+~-]*")


async def download_kernel(settings: KernelSettings, work: Path) -> Path | None:
    """Downloads the kernel's package and extracts it below ``work``.

    Returns:
        The directory with ``boot/vmlinuz-*`` and ``lib/modules/*``; None where this host has no apt.

    Raises:
        Unavailable: The package cannot be found, downloaded or extracted.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise Unsupported(f"Debian has no cloud kernel for {machine}", hint="give --kernel one")
    apt = _Apt(settings.download_seconds, work)
    package = f"{settings.package}-{_ARCHITECTURES[machine]}"
    try:
        package = await apt.resolve(package)
        file = await apt.download(package)
    except Unavailable:
        await apt.use_own_lists()
        package = await apt.resolve(package)
        file = await apt.download(package)
    root = work / "root"
    await _run(["dpkg-deb", "-x", str(file), str(root)], cwd=work, seconds=settings.download_seconds)
    return root


class _Apt:
    """apt's commands, with the host's package lists or lists of our own."""

    def __init__(self, seconds: float, work: Path) -> None:
        self._seconds = seconds
        self._work = work
        self._options: list[str] = ["-qq"]

    async def use_own_lists(self) -> None:
        """Fetches package lists into the work directory and uses those from here on."""
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self._work / name).mkdir(parents=True, exist_ok=True)
        self._options += ["-o", f"Dir::State={self._work}/state", "-o", f"Dir::Cache={self._work}/cache"]
        # the host's dpkg status is not needed, and its lists' directory may belong to a user that must not write here
        self._options += ["-o", "Dir::State::status=/dev/null", "-o", "APT::Sandbox::User="]
        await self._apt("apt-get", "update")

    async def resolve(self, package: str) -> str:
        """The package with the kernel in it, which a meta package depends on."""
        if _CONCRETE.fullmatch(package):
            return package
        text = await self._apt("apt-cache", "show", "--no-all-versions", package)
        for line in text.splitlines():
            field, _, value = line.partition(":")
            if field == "Depends" and (match := _CONCRETE.search(value)):
                return match[0]
        raise Unavailable(f"the package {package} depends on no kernel", hint="give --kernel one")

    async def download(self, package: str) -> Path:
        """Downloads ``package``, verified by apt, into the work directory."""
        await self._apt("apt-get", "download", package)
        files = list(self._work.glob("*.deb"))
        if len(files) != 1:
            raise Unavailable(f"apt-get download {package} left {len(files)} packages", hint="give --kernel one")
        return files[0]

    async def _apt(self, program: str, *arguments: str) -> str:
        return await _run([program, *self._options, *arguments], cwd=self._work, seconds=self._seconds)


async def _run(command: list[str], *, cwd: Path, seconds: float) -> str:
    """Runs a program; its standard output."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate()
    except TimeoutError as error:
        raise Unavailable(
            f"{' '.join(command[:2])} took longer than {seconds:.0f} s", hint="raise vmm.kernel.download_seconds"
        ) from error
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # its download methods are processes of their own, and hold our pipes
            await process.communicate()
    if process.returncode:
        lines = errors.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise Unavailable(f"{command[0]} failed: {lines[-1]}", hint="see that apt works on this host, or give --kernel a file")
    return output.decode("utf-8", "replace")
