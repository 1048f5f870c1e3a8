"""Layers of Debian packages: what ``FROM debian`` and ``RUN apt-get install`` would leave, without Docker."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.images.layout import EPOCH

__all__ = ["SUITE", "busybox", "layers", "trees"]

SUITE = "bookworm"
"""The suite of every image, whatever the host runs: its Python (3.11) is the one that the wheels are for."""

_SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))


def _mirror() -> list[str]:
    """The host's own Debian mirror, where it names one; mmdebstrap's default otherwise."""
    for place in _SOURCES:
        for file in sorted(place.iterdir()) if place.is_dir() else [place]:
            if not file.is_file() or file.suffix not in {".list", ".sources"}:
                continue
            found = re.search(
                r"^(?:URIs:|deb)\s+(?:\[[^]]*\]\s+)?(https?://\S*/debian)/?(?:\s|$)", file.read_text(), re.MULTILINE
            )
            if found:
                return [found[1]]
    return []


def _bootstrap(path: Path, packages: tuple[str, ...]) -> None:
    """Writes the tar of a minimal Debian with ``packages``; reproducible, as mmdebstrap is with SOURCE_DATE_EPOCH."""
    include = [f"--include={','.join(packages)}"] if packages else []
    command = ["mmdebstrap", "--quiet", "--variant=minbase", *include, "--dpkgopt=path-exclude=/usr/share/man/*"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)}
    subprocess.run([*command, SUITE, str(path), *_mirror()], check=True, env=environment, stdin=subprocess.DEVNULL)


def trees(directory: Path, packages: tuple[str, ...]) -> tuple[Path, Path]:
    """Makes two tars in ``directory``: a minimal Debian, and the same with ``packages``."""
    base, full = directory / "base.tar", directory / "full.tar"
    with ThreadPoolExecutor() as pool:
        list(pool.map(_bootstrap, (base, full), ((), packages)))
    return base, full


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The entries of a tar, with clean names."""
    with tarfile.open(path) as tar:
        for member in tar:
            member.name = member.name.removeprefix("./").rstrip("/")
            if member.name not in {"", "."}:
                member.linkname = member.linkname.removeprefix("./") if member.islnk() else member.linkname
                member.pax_headers = {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
                yield member, tar


def _identity(member: tarfile.TarInfo, tar: tarfile.TarFile) -> tuple[object, ...]:
    """All that makes an entry what it is."""
    content = b""
    if member.isreg():
        file = tar.extractfile(member)
        assert file is not None
        content = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    xattrs = tuple(sorted(member.pax_headers.items()))
    return member.type, member.mode, member.uid, member.gid, member.size, member.mtime, member.linkname, xattrs, content


def _copy(member: tarfile.TarInfo, source: tarfile.TarFile, target: tarfile.TarFile) -> None:
    target.addfile(member, source.extractfile(member) if member.isreg() else None)


def layers(base: Path, full: Path) -> tuple[Callable[[tarfile.TarFile], None], Callable[[tarfile.TarFile], None]]:
    """Two fillers for :meth:`Layout.add_layer`: the base, and what the packages change, whiteouts included."""

    def fill_base(target: tarfile.TarFile) -> None:
        for member, tar in _members(base):
            _copy(member, tar, target)

    def fill_packages(target: tarfile.TarFile) -> None:
        lower = {member.name: _identity(member, tar) for member, tar in _members(base)}
        for member, tar in _members(full):
            if lower.pop(member.name, None) != _identity(member, tar):
                _copy(member, tar, target)
        for name in sorted(lower):
            path = Path(name)
            if str(path.parent) not in lower:  # a whiteout of the parent hides what is below it
                target.addfile(_info(str(path.with_name(f".wh.{path.name}")), 0o644))

    return fill_base, fill_packages


def _info(name: str, mode: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.type, info.linkname, info.mtime = mode, kind, link, EPOCH
    return info


def busybox(target: tarfile.TarFile) -> None:
    """Fills a layer with a static busybox, a link for each applet and a root user."""
    with tempfile.TemporaryDirectory() as scratch:
        # Downloaded, not installed: the package would push a host's own busybox away.
        subprocess.run(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", "busybox-static"], check=True, cwd=scratch)
        (package,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), f"{scratch}/tree"], check=True)
        (binary,) = (path for path in Path(scratch, "tree").rglob("busybox") if path.is_file() and os.access(path, os.X_OK))
        applets = subprocess.run([str(binary), "--list"], check=True, capture_output=True, text=True).stdout.split()
        for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "var"):
            target.addfile(_info(name, 0o1777 if name == "tmp" else 0o755, tarfile.DIRTYPE))
        program = _info("bin/busybox", 0o755)
        program.size = binary.stat().st_size
        with binary.open("rb") as file:
            target.addfile(program, file)
    for name in sorted(set(applets) - {"busybox"}):
        target.addfile(_info(f"bin/{name}", 0o777, tarfile.SYMTYPE, "busybox"))
    for name, text in (("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("etc/group", "root:x:0:\n")):
        info = _info(name, 0o644)
        info.size = len(text)
        target.addfile(info, io.BytesIO(text.encode()))
