"""The host's CPU, as a guest under KVM has got to know it: one that was written down goes on only on the same."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["host_cpu"]


def host_cpu() -> list[str]:
    """Its model and its abilities."""
    return re.findall(r"^(?:model name|flags)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:2]
