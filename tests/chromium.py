"""Debian's Chromium without a screen, driven through its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium-headless-shell", "chromium")
WAIT = 60.0


def chromium() -> str | None:
    """The browser's path; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """An open page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.said: list[str] = []
        """What the page's console and the browser's log said: violations of the policy, failed scripts."""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            found = json.loads(message.data)
            if "id" in found:
                self._answers.pop(found["id"]).set_result(found)
            elif found["method"] == "Log.entryAdded":
                self.said.append(found["params"]["entry"]["text"])
            elif found["method"] == "Runtime.exceptionThrown":
                self.said.append(json.dumps(found["params"]["exceptionDetails"]))
            elif found["method"] == "Runtime.consoleAPICalled":
                self.said.append(json.dumps(found["params"]["args"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        found = await asyncio.wait_for(answer, WAIT)
        assert "error" not in found, found
        return found["result"]

    async def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Sets the window's size and the reader's preference."""
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 700)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def open(self, url: str) -> None:
        """Goes to an address."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href.startsWith('http')")

    async def run(self, script: str) -> Any:
        """What an expression is, awaited where it is a promise."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Waits until an expression is true; fails with the page's text after a minute."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT):
                while not (value := await self.run(f"!!({condition})")):
                    await asyncio.sleep(0.02)
                return value
        raise AssertionError(f"never: {condition}\n{await self.run('document.body.innerText')}\n{self.said}")

    async def type(self, text: str) -> None:
        """Types into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """Presses a key: Tab, Enter."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r")}[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def shoot(self, path: Path, *, whole: bool = False) -> bytes:
        """A screenshot as PNG."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        data = base64.b64decode(found["data"])
        path.write_bytes(data)
        return data

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()


@contextlib.asynccontextmanager
async def tab() -> AsyncIterator[Tab]:
    """A fresh browser with one page open."""
    path = chromium()
    assert path is not None
    # Chromium's sandbox refuses root, and there is nothing foreign here: the page is ours.
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        "--no-first-run",
        "--disable-dev-shm-usage",
    )
    with tempfile.TemporaryDirectory(prefix="castoff-chromium-", ignore_cleanup_errors=True) as profile:
        # A group of its own, and no pipes: its helpers outlive it a while, and would keep them open.
        process = await asyncio.create_subprocess_exec(
            path,
            *flags,
            f"--user-data-dir={profile}",
            "about:blank",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            port = await _port(Path(profile), process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    target = next(one for one in await response.json(content_type=None) if one["type"] == "page")
                socket = await session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
                found = Tab(socket)
                try:
                    for domain in ("Page", "Runtime", "Log"):
                        await found.call(f"{domain}.enable")
                    yield found
                finally:
                    await found.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _port(profile: Path, process: asyncio.subprocess.Process) -> int:
    """The port that the browser chose."""
    file = profile / "DevToolsActivePort"
    async with asyncio.timeout(WAIT):
        while process.returncode is None:
            if file.exists() and (lines := file.read_text().split()):
                return int(lines[0])
            await asyncio.sleep(0.02)
    raise AssertionError(f"the browser ended with {process.returncode}")
