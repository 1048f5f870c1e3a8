"""The variables of each of a machine's processes, where its configuration names several (``config.processes``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from castoff.errors import Invalid, NotFound
from castoff.lifecycle.config import Process
from castoff.lifecycle.model import Machine

__all__ = ["check_processes", "process_variables"]

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FIELDS: Final[Mapping[str, Callable[[Machine], str]]] = {
    "id": lambda machine: machine.id,
    "version": lambda machine: machine.version,
    "app_name": lambda machine: machine.app,
    "private_ip": lambda machine: machine.address6,
    "region": lambda machine: machine.region,
    "image": lambda machine: machine.config.image,
}
"""What ``env_from`` may take a variable from."""


def check_processes(processes: tuple[Process, ...]) -> None:
    """Refuses processes whose variables could never be made.

    Raises:
        Invalid: A variable has no usable name or value, or comes from a field that there is not.
    """
    for process in processes:
        for name in [secret.env_var for secret in process.secrets or ()] + [one.env_var for one in process.env_from or ()]:
            if not _VARIABLE.match(name):
                raise Invalid(f"processes: env_var {name[:80]!r} is no name of a variable", hint="letters, digits and _")
        for name, value in (process.env or {}).items():
            if not name or "=" in name or "\0" in name or "\0" in value:
                raise Invalid(f"processes: env {name[:80]!r} cannot be a variable, or its value not be one's")
        for one in process.env_from or ():
            if one.field_ref not in _FIELDS:
                raise Invalid(f"processes: field_ref {one.field_ref[:80]!r} is none", hint=f"they are {', '.join(_FIELDS)}")


def process_variables(
    process: Process, machine: Machine, *, secrets: Mapping[str, str], facts: Mapping[str, str]
) -> dict[str, str]:
    """A process's variables over the image's; what is nearer to it wins: the app's secrets, the machine's facts and ``env``, then
    its own ``env_from``, ``secrets`` and ``env``.

    Args:
        process: Which.
        machine: Whose.
        secrets: The app's, which it has unless it ignores them.
        facts: By which the machine knows itself.

    Raises:
        NotFound: It names a secret that the app has not.
    """
    variables = {} if process.ignore_app_secrets else dict(secrets)
    variables |= {**facts, **(machine.config.env or {})}
    variables |= {one.env_var: _FIELDS[one.field_ref](machine) for one in process.env_from or ()}
    for secret in process.secrets or ():
        name = secret.name or secret.env_var
        if name not in secrets:
            raise NotFound(f"processes: the app has no secret {name[:80]!r}", hint="set it, then start the machine")
        variables[secret.env_var] = secrets[name]
    return variables | (process.env or {})
