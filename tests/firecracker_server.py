"""A Firecracker made from its own API description: refuses what the description does not allow, and plays a guest.

Runs as the program ``firecracker`` or, with a real chroot and a real change of user, as ``jailer``. It needs no KVM and runs
no kernel: what it proves is that castoff says the right things in the right order, in the right place, as the right user.
What it was told goes to ``requests.jsonl`` beside its API socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from aiohttp import web

SPECIFICATION = Path(__file__).resolve().parents[2] / "shared" / "specs" / "firecracker.yaml"
VERSION = os.environ.get("FIRECRACKER_SERVER_VERSION", "1.15.0")
BEFORE_BOOT = ("/boot-source", "/drives/", "/machine-config", "/network-interfaces/", "/vsock", "/logger", "/metrics", "/entropy")


class Api:
    """The API description, compiled."""

    def __init__(self, path: Path) -> None:
        self._specification = yaml.safe_load(path.read_text())
        self._routes = [
            (re.compile("^" + re.sub(r"\{\w+\}", "([A-Za-z0-9_]+)", route) + "$"), operations)
            for route, operations in self._specification["paths"].items()
        ]

    def problem(self, method: str, path: str, body: bytes) -> str:
        """What is wrong with a request; empty if nothing is."""
        for pattern, operations in self._routes:
            match = pattern.match(path)
            if match is None:
                continue
            if method.lower() not in operations:
                return f"{method} is not allowed on {path}"
            if method == "GET":
                return "a body is not allowed" if body else ""
            try:
                value = json.loads(body)
            except ValueError as error:
                return f"the body is no JSON: {error}"
            schema = next(part["schema"] for part in operations[method.lower()]["parameters"] if part["in"] == "body")
            return self._mismatch(schema, value) or _contradiction(match, value)
        return f"there is no {path}"

    def _mismatch(self, schema: dict[str, Any], value: Any) -> str:
        whole = _strict({**schema, "definitions": self._specification["definitions"]})
        try:
            jsonschema.validate(value, whole, cls=jsonschema.Draft4Validator)
        except jsonschema.ValidationError as error:
            return error.message
        return ""


def _strict(schema: Any) -> Any:
    """The schema with unknown properties refused, as Firecracker refuses them."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(part) for key, part in schema.items()}
    if strict.get("type") == "object" and "properties" in strict:
        strict.setdefault("additionalProperties", False)
    return strict


def _contradiction(match: re.Match[str], value: dict[str, Any]) -> str:
    for key in ("drive_id", "iface_id"):
        if key in value and value[key] != match[1]:
            return f"{key} is {value[key]!r} in the body and {match[1]!r} in the path"
    return ""


class Firecracker:
    """The server.

    Args:
        root: Where its paths start: ``/``, or nothing else inside of a jail.
        record: Where requests are written to.
    """

    def __init__(self, api: Api, record: Path) -> None:
        self._api = api
        self._record = record
        self._told: dict[str, dict[str, Any]] = {}
        self._started = False
        self._paused = False
        self._counted = 0
        self._ended = asyncio.Event()

    async def run(self, socket: str) -> None:
        """Serves until the guest has ended."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, socket).start()
        await self._ended.wait()
        await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.read()
        problem = self._api.problem(request.method, request.path, body) or self._out_of_order(request.path)
        with self._record.open("a") as record:
            record.write(json.dumps({"path": request.path, "body": body.decode(), "problem": problem}) + "\n")
        if not problem and request.method == "GET":
            return web.json_response(self._answer(request.path))
        if not problem:
            self._told[request.path] = json.loads(body)
            problem = await self._act(request.path)
        if problem:
            return web.json_response({"fault_message": problem}, status=400)
        return web.Response(status=204)

    def _out_of_order(self, path: str) -> str:
        if self._started and path.startswith((*BEFORE_BOOT, "/snapshot/load")):
            return "The requested operation is not supported after starting the microVM."
        if not self._started and path.startswith(("/vm", "/snapshot/create")):
            return "The requested operation is not supported before starting the microVM."
        if path == "/snapshot/create" and not self._paused:
            return "Cannot save the microVM: it is not paused."
        if path == "/snapshot/load" and set(self._told) - {"/logger", "/metrics"}:
            return "Loading a microVM snapshot not allowed after configuring boot-specific resources."
        return ""

    def _answer(self, path: str) -> dict[str, Any]:
        if path != "/":
            return {}
        state = "Not started" if not self._started else "Paused" if self._paused else "Running"
        return {"app_name": "Firecracker", "id": "x", "state": state, "vmm_version": VERSION}

    def _create(self, told: dict[str, Any]) -> str:
        """All of the memory and what the devices are."""
        size = self._told["/machine-config"]["mem_size_mib"] << 20
        devices = {path: body for path, body in self._told.items() if path.startswith((*BEFORE_BOOT, "/actions"))}
        try:
            with open(told["mem_file_path"], "r+b") as file:  # noqa: PTH123
                file.truncate(size)
                file.seek(size // 2)
                file.write(self._counted.to_bytes(8, "little"))
            with open(told["snapshot_path"], "w") as file:  # noqa: PTH123
                json.dump({"devices": devices, "version": VERSION}, file)
        except OSError as error:
            return f"Cannot write: {error}"
        return ""

    async def _load(self, told: dict[str, Any]) -> str:
        """Opens drives and binds the vsock socket where they were, as the real one does."""
        try:
            with open(told["snapshot_path"]) as file:  # noqa: PTH123
                state = json.load(file)
            memory = told["mem_backend"]["backend_path"]
            with open(memory, "rb") as file:  # noqa: PTH123
                file.seek(Path(memory).stat().st_size // 2)
                self._counted = int.from_bytes(file.read(8), "little")
        except OSError as error:
            return f"Cannot load: {error}"
        if os.access(memory, os.W_OK) and os.geteuid():
            return "a jailed Firecracker must not be able to change the memory"
        if state["version"] != VERSION:
            return "Incompatible snapshot version"
        self._told |= state["devices"]
        for path, body in state["devices"].items():
            if path.startswith("/drives/") and (
                problem := _unreadable(body["path_on_host"], "rb" if body["is_read_only"] else "r+b")
            ):
                return problem
        self._started, self._paused = True, not told.get("resume_vm", False)
        await asyncio.start_unix_server(self._guest, self._told["/vsock"]["uds_path"])
        return ""

    async def _act(self, path: str) -> str:
        """What a request does, as far as it can go wrong."""
        told = self._told[path]
        if path == "/boot-source":
            if len(told["boot_args"]) > 2048 or "nomodule" in told["boot_args"].split():
                return "bad kernel command line"
            return _unreadable(told["kernel_image_path"], "rb") or _unreadable(told["initrd_path"], "rb")
        if path.startswith("/drives/"):
            return _unreadable(told["path_on_host"], "rb" if told["is_read_only"] else "r+b")
        if path == "/logger":
            return _unreadable(told["log_path"], "ab")
        if path == "/vm":
            self._paused = told["state"] == "Paused"
        if path == "/snapshot/create":
            return self._create(told)
        if path == "/snapshot/load":
            return await self._load(told)
        if path == "/actions" and told["action_type"] == "InstanceStart":
            missing = {"/boot-source", "/machine-config", "/vsock"} - set(self._told)
            if missing or self._started:
                return f"cannot start without {sorted(missing)}"
            self._started = True
            print("kernel says hello", flush=True)
            await asyncio.start_unix_server(self._guest, self._told["/vsock"]["uds_path"])
        return ""

    async def _guest(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A vsock connection to the guest: its init says what the drives hold, and ends when it is told to."""
        port = (await reader.readline()).decode().removeprefix("CONNECT ").strip()
        if self._paused:
            writer.close()
            return
        if port not in ("1024", "1025"):
            writer.close()
            return
        writer.write(b"OK 1073741824\n")
        hello = await reader.readexactly(4096 + 8 + 16 + 1)
        writer.write(_frame(16, b"castoff\n" + hello[4104:4120] + struct.pack("<I", 1)))
        if port == "1024":
            self._counted += 1  # in its memory: how often it was asked
            drives = [path for path in self._told if path.startswith("/drives")]
            text = " ".join(drives if self._counted == 1 else [*drives, str(self._counted)]).encode()
            writer.write(_frame(17, struct.pack("<QQQ", 1, 2, 3)) + _frame(18, bytes(8) + text, stream=1))
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                kind, _, _, length = struct.unpack("<BBHI", await reader.readexactly(8))
                await reader.readexactly(length + 1)
                if kind == 10:
                    self._ended.set()
        writer.close()


def _frame(kind: int, payload: bytes, *, stream: int = 0) -> bytes:
    return struct.pack("<BBHI", kind, stream, 0, len(payload)) + payload


def _unreadable(path: str, mode: str) -> str:
    try:
        with open(path, mode):  # noqa: PTH123
            return ""
    except OSError as error:
        return f"{path}: {error.strerror}"


def _options(words: list[str]) -> dict[str, str]:
    return dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))


def _jailer(words: list[str]) -> tuple[Path, str]:
    """Enters the jail as the real one does: BASE/PROGRAM/ID/root, that user and group, nothing else."""
    split = words.index("--")
    options = _options(words[:split])
    root = Path(options["chroot-base-dir"]) / Path(options["exec-file"]).name / options["id"] / "root"
    root.mkdir(parents=True, exist_ok=True)
    os.chown(root, int(options["uid"]), int(options["gid"]))
    os.chroot(root)
    os.chdir("/")
    os.setgroups([])
    os.setgid(int(options["gid"]))
    os.setuid(int(options["uid"]))
    return Path("/"), _options(words[split + 1 :])["api-sock"]


def main() -> None:
    """The program: ``firecracker`` or ``jailer``, by the name that it was called by."""
    program, words = sys.argv[1], sys.argv[2:]
    api = Api(SPECIFICATION)
    if "fail" in program:
        raise SystemExit("Error: KVM is not there")
    if program == "jailer":
        directory, socket = _jailer(words)
    else:
        socket = _options(words)["api-sock"]
        directory = Path(socket).parent
    asyncio.run(Firecracker(api, directory / "requests.jsonl").run(socket))


if __name__ == "__main__":
    main()
