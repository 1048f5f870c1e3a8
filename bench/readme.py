"""``python -m bench.readme``: the numbers in README.md, made from docs/bench/results.json so that they cannot drift from it.

A test compares. ``make bench`` runs it after a complete run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.results import figure

__all__ = ["block", "main", "replaced"]

_BEGIN = "<!-- numbers: python -m bench.readme -->\n"
_END = "<!-- end of numbers -->\n"
_RESULTS = Path("docs/bench/results.json")
_README = Path("README.md")


def block(results: Mapping[str, Any]) -> str:
    """Two tables: seconds of each contender, and every target with its figure."""
    return "\n".join((*_where(results), "", *_contenders(results["rows"]), "", *_targets(results["rows"]), ""))


def replaced(readme: str, results: Mapping[str, Any]) -> str:
    """``readme`` with its numbers those of ``results``.

    Raises:
        ValueError: It has not exactly one place for them.
    """
    before, begin, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end or _BEGIN in after or _END in after:
        raise ValueError("README.md needs one pair of the lines that the numbers stand between")
    return before + begin + block(results) + end + after


def _where(results: Mapping[str, Any]) -> Iterator[str]:
    found = results["environment"]
    met = [row["verdict"] == "met" for row in results["rows"] if row["target"]]
    yield (
        f"`{results['command']}`, {results['date']}: {found['cores']} cores, {found['memory_gib']:.0f} GiB, "
        f"Linux {found['kernel']}, Python {found['python']}, the registry on loopback, guests emulated (no KVM). "
        f"{sum(met)} of {len(met)} targets met; a missed one is in bold."
    )


def _contenders(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The row that has them says how each was measured."""
    row = next(row for row in rows if "contenders" in row["measured"])
    ours = sum(row["measured"]["contenders"]["castoff"])
    yield f"From an image's reference to an ext4 that boots, nothing of it on the host (`python -m bench --only {row['group']}`):"
    yield ""
    yield "| big image | tree, s | `mke2fs -d`, s | together, s | castoff is faster by |"
    yield "|---|--:|--:|--:|--:|"
    for name, (tree, ext4) in sorted(row["measured"]["contenders"].items(), key=lambda item: sum(item[1])):
        parts = ("-", "-") if name == "castoff" else (f"{tree:.1f}", f"{ext4:.1f}")
        faster = "" if name == "castoff" else f"{(tree + ext4) / ours:.1f} x"
        yield f"| {name} | {parts[0]} | {parts[1]} | {tree + ext4:.1f} | {faster} |"


def _targets(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| `--only` | what | figure | target |"
    yield "|---|---|--:|--:|"
    for row in rows:
        if row["target"]:
            value = figure(row["value"], row["unit"])
            shown = value if row["verdict"] == "met" else f"**{value}**"
            target = figure(row["target"]["figure"], row["unit"])
            yield f"| {row['group']} | {row['name']} | {shown} | {row['target']['want']} {target} |"


def main() -> int:
    """Writes README.md; the exit status."""
    _README.write_text(replaced(_README.read_text(), json.loads(_RESULTS.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
