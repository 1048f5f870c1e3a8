"""QEMU's control socket, as far as castoff speaks on it (QEMU, docs/interop/qmp-spec.rst)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from castoff.errors import Unavailable
from castoff.vmm.sockets import connect_unix

__all__ = ["execute", "greet"]


async def greet(path: Path) -> str:
    """Waits for QEMU's greeting; its version. The caller sets a time limit.

    Raises:
        Unavailable: Nobody answers, or not like QEMU.
    """
    answer = await execute(path, "query-version")
    version = answer["qemu"]
    return f"{version['major']}.{version['minor']}.{version['micro']}"


async def execute(path: Path, command: str, **arguments: Any) -> Any:
    """Executes one command; its answer.

    Raises:
        Unavailable: Nobody answers, or with an error.
    """
    try:
        reader, writer = await connect_unix(path)
        try:
            await reader.readline()  # the greeting
            for name, given in (("qmp_capabilities", {}), (command, arguments)):
                writer.write(json.dumps({"execute": name, "arguments": given}).encode() + b"\n")
                await writer.drain()
                answer: dict[str, Any] = {}
                while "return" not in answer:  # events come in between
                    answer = json.loads(await reader.readline())
                    if "error" in answer:
                        raise Unavailable(f"qemu refused {name}: {answer['error'].get('desc', '')}")
            return answer["return"]
        finally:
            writer.close()
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise Unavailable(f"qemu's control socket {path} gave no answer: {error}", hint="has the machine ended?") from error
