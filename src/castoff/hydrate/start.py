"""Starting the hydrator: a process of its own, which outlives whoever needed it first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from castoff.errors import Unavailable

__all__ = ["start_hydrator"]


def start_hydrator(state: Path) -> None:
    """Starts the hydrator of a state directory, in a session of its own. Where one runs already, the new one just ends.

    Raises:
        Unavailable: It cannot be started.
    """
    directory = state / "hydrate"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # setsid forks and ends, so that it is init that reaps the hydrator: not we, who may live for long
        subprocess.run(
            ["setsid", "--fork", sys.executable, "-m", "castoff.hydrate", "--state", str(state)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"the hydrator cannot be started: {error}") from error
    finally:
        os.close(log)
