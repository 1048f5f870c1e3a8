"""castoff: OCI images become bootable root filesystems without being unpacked, and run as microVMs.

The public interface, imported when it is first used::

    import castoff

    async with castoff.Host.open() as host:
        async with await host.run("alpine:3", command=["echo", "hello"]) as machine:
            async for output in machine.output():
                print(output.data.decode(), end="")
            code = await machine.wait()

docs/api.md tells the whole of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from castoff.config import Config as Config
    from castoff.config import load as load_config
    from castoff.errors import CastoffError as CastoffError
    from castoff.host import Host as Host
    from castoff.machine.machine import Machine as Machine
    from castoff.machine.model import MachineRequest as MachineRequest
    from castoff.timeline import Timeline as Timeline
    from castoff.timeline import recording as recording

__all__ = ["CastoffError", "Config", "Host", "Machine", "MachineRequest", "Timeline", "__version__", "load_config", "recording"]

__version__ = "0.1.0"

_HOMES = {
    "CastoffError": "castoff.errors:CastoffError",
    "Config": "castoff.config:Config",
    "Host": "castoff.host:Host",
    "Machine": "castoff.machine.machine:Machine",
    "MachineRequest": "castoff.machine.model:MachineRequest",
    "Timeline": "castoff.timeline:Timeline",
    "load_config": "castoff.config:load",
    "recording": "castoff.timeline:recording",
}
"""Where each public name lives. They are imported on first use (PEP 562): `castoff --help` wants none of them."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'castoff' has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
