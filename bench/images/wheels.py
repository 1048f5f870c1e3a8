"""A layer of PyPI wheels: what ``RUN pip install`` leaves of a machine learning stack."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from bench.images.layout import EPOCH

__all__ = ["filler", "install"]

_SITE = "usr/local/lib/python3.11/dist-packages"
_WHEELS = (
    "botocore==1.44.5",
    "joblib==1.6.0",
    "numpy==2.4.6",
    "pandas==3.1.1",
    "plotly==7.1.0",
    "pyarrow==26.0.1",
    "python-dateutil==2.9.0.post0",
    "pytz==2026.6",
    "scikit-learn==1.9.1",
    "scipy==1.17.1",
    "six==1.17.0",
    "tensorflow-cpu==2.15.1",
    "threadpoolctl==3.8.0",
    "transformers==5.23.0",
)
"""Chosen for what they unpack to (1.4 GB, 30,000 entries of 360 MB), not for working together."""

_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")


def install(directory: Path) -> None:
    """Unpacks the wheels below ``directory`` as pip lays them out for Debian 12's Python, without running any code of theirs."""
    platforms = [f"--platform={name}" for name in _PLATFORMS]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    target = [f"--target={directory / _SITE}", "--python-version=3.11", "--implementation=cp"]
    subprocess.run([*command, *platforms, *target, *_WHEELS], check=True)


def filler(directory: Path) -> Callable[[tarfile.TarFile], None]:
    """A filler for :meth:`Layout.add_layer`: everything below ``directory``, sorted, owned by root."""

    def normal(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime = EPOCH
        return info

    def fill(target: tarfile.TarFile) -> None:
        for place, directories, files in os.walk(directory):
            directories.sort()
            for name in [*directories, *sorted(files)]:
                path = Path(place, name)
                target.add(path, arcname=str(path.relative_to(directory)), recursive=False, filter=normal)

    return fill
