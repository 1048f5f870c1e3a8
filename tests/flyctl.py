"""A real flyctl, where there is one: on PATH, or where CASTOFF_FLYCTL says."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.recorder import Recorder

LIMIT = 120.0
NOWHERE = "http://127.0.0.1:9"
"""A proxy that does not answer: flyctl asks for feature flags and the like by HTTPS, which shall not leave this host. Go's HTTP
client uses none for loopback."""


def flyctl() -> str | None:
    """The binary's path; None where there is none."""
    return os.environ.get("CASTOFF_FLYCTL") or next(filter(None, map(shutil.which, ("flyctl", "fly"))), None)


@dataclass
class Flyctl:
    """flyctl with a home of its own, pointed to a server through a recorder."""

    binary: str
    token: str
    home: Path
    recorder: Recorder

    async def run(self, *words: str) -> tuple[int, str]:
        """One command; its exit code and what it wrote, to stdout and stderr."""
        self.recorder.command = " ".join(words)
        url = self.recorder.url
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "FLY_API_BASE_URL": url,
            "FLY_FLAPS_BASE_URL": url,
            "FLY_UIEX_BASE_URL": url,
            "FLY_ACCESS_TOKEN": self.token,
            "FLY_SEND_METRICS": "0",
            "FLY_NO_UPDATE_CHECK": "1",
            "FLY_NO_INCIDENTS_CHECK": "1",
            "DOCKER_HOST": "unix:///nonexistent",
            "HTTP_PROXY": NOWHERE,
            "HTTPS_PROXY": NOWHERE,
            "NO_COLOR": "1",
        }
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            self.binary,
            *words,
            env=env,
            cwd=self.home,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError(f"fly {' '.join(words)} does not end: {self.recorder.since(0)[-5:]}") from None
        return process.returncode or 0, output.decode()

    async def __call__(self, *words: str) -> str:
        """A command that must succeed."""
        before = len(self.recorder.said)
        code, output = await self.run(*words)
        assert code == 0, f"fly {' '.join(words)}: {output}\n{self.recorder.since(before)}"
        return output

    async def json(self, *words: str) -> Any:
        """What a command says as JSON."""
        return json.loads(await self(*words, "--json"))

    async def refused(self, *words: str) -> str:
        """What a command says that must fail, and by itself: not by a panic."""
        code, output = await self.run(*words)
        assert code == 1, f"fly {' '.join(words)}: {code} {output}"
        return output
