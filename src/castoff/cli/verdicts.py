"""What a verification found, told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from castoff.cli.exits import Exit, printable
from castoff.cli.globals import Globals

if TYPE_CHECKING:
    from castoff.rootfs.verify import Verdict

__all__ = ["tell_verdicts"]


def tell_verdicts(shared: Globals, verdicts: Sequence[Verdict]) -> int:
    """Prints them, those with a problem or a note one a line, then the sum; the exit code."""
    bad = sum(bool(verdict.problem) for verdict in verdicts)

    def text() -> str:
        lines = [
            f"{verdict.kind} {verdict.name}: {printable('; '.join(part for part in (verdict.problem, verdict.note) if part))}"
            for verdict in verdicts
            if verdict.problem or verdict.note
        ]
        return "\n".join([*lines, f"{len(verdicts)} checked, {bad} damaged"])

    shared.answer({"damaged": bad, "verdicts": [asdict(verdict) for verdict in verdicts]}, text)
    return Exit.NO if bad else Exit.OK
