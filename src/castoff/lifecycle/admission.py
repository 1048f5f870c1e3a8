"""What no machine can be: refused before anything of it is written down."""

from __future__ import annotations

import signal as signals

from castoff.errors import Invalid, Unsupported
from castoff.lifecycle.checks import machine_checks
from castoff.lifecycle.config import MachineConfig, StopConfig
from castoff.lifecycle.durations import seconds
from castoff.lifecycle.launches import file_content
from castoff.lifecycle.processes import check_processes

__all__ = ["check_config"]


def check_config(config: MachineConfig) -> None:
    """Looks at a configuration, as far as the lifecycle itself acts on it.

    Raises:
        Invalid: It contradicts itself.
        Unsupported: It asks for what is not served.
    """
    _check_files(config)
    _check_env(config)
    machine_checks(config)
    check_processes(config.processes or ())
    if config.stop_config is not None:
        _check_stop(config.stop_config)
    if config.restart is not None and config.restart.policy == "spot-price":
        raise Unsupported("restart: the policy spot-price is not served", hint="no, on-failure or always")


def _check_files(config: MachineConfig) -> None:
    for file in config.files or ():
        if not file.guest_path.startswith("/") or "\0" in file.guest_path:
            raise Invalid(f"files: guest_path {file.guest_path[:80]!r} is no absolute path")
        if file.secret_name is None:
            file_content(file)


def _check_env(config: MachineConfig) -> None:
    for name, value in (config.env or {}).items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise Invalid(f"env: {name[:80]!r} cannot be a variable, or its value not be one's")


def _check_stop(stop: StopConfig) -> None:
    if stop.signal and stop.signal not in signals.Signals.__members__:
        raise Invalid(f"stop_config: signal {stop.signal[:40]!r} is none", hint="write SIGTERM, SIGINT, ...")
    if stop.timeout is not None:
        seconds(stop.timeout)
