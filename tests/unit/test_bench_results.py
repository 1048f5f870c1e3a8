"""How bench/ judges figures: what it publishes must be right, or it is worth nothing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench import boot_chart, chart, readme
from bench.boot_chart import Came
from bench.measure import Failed, alternate, percentile, run, started, tree
from bench.results import Row, at_least, at_most, from_json, table, to_json


def test_a_target_is_met_from_its_figure_on() -> None:
    """The figure itself meets a target, one step beyond does not."""
    cases = ((6, at_least(6)), (5.99, at_least(6)), (10, at_most(10)), (11, at_most(10)))
    rows = [Row("g", "n", value, "x", target) for value, target in cases]
    assert [row.verdict for row in rows] == ["met", "missed", "met", "missed"]
    assert Row("g", "n", 1, "x").verdict == "told"


def test_percentiles_are_values_that_were_measured() -> None:
    """The 99th of a hundred is the second largest, no interpolation."""
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([3.0], 0.99) == 3


def test_a_run_tells_the_memory_of_the_whole_tree_and_the_disk_in_use(tmp_path: Path) -> None:
    """A child's memory and a file that is gone at the end both count."""
    file = tmp_path / "file"
    child = "import time; data = bytearray(80 << 20); time.sleep(0.5)"
    parent = f"""if True:
        import os, subprocess, sys
        with open({str(file)!r}, "wb") as file:
            file.write(os.urandom(32 << 20))
        subprocess.run([sys.executable, "-c", {child!r}], check=True)
        os.unlink({str(file)!r})
    """
    usage = run([sys.executable, "-c", parent], disk=tmp_path)
    assert usage.memory > 80 << 20
    assert usage.disk > 24 << 20
    assert 0.5 < usage.seconds < 20


def test_a_command_that_fails_is_no_measurement() -> None:
    """It raises, with what the command said."""
    with pytest.raises(Failed, match=r"exit status 3: no such thing"):
        run([sys.executable, "-c", "import sys; sys.stderr.write('no such thing'); sys.exit(3)"])


def test_what_a_bench_started_is_gone_when_it_fails() -> None:
    """A child too that its parent does not end, and whatever they still write."""
    with pytest.raises(RuntimeError), started(["sh", "-c", "sleep 300 & while :; do echo x; done"]) as process:
        while len(pids := list(tree(process.pid))) < 2:
            assert process.poll() is None
        raise RuntimeError
    end = time.monotonic() + 10  # a killed process needs a moment
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < end


def test_contenders_take_turns_and_the_first_round_is_nobodys() -> None:
    """A B A B, and what the discarded round returned is left out."""
    order: list[str] = []
    kept = alternate({"a": lambda: order.append("a") or len(order), "b": lambda: order.append("b") or len(order)}, rounds=2)
    assert order == ["a", "b"] * 3
    assert kept == {"a": [3, 5], "b": [4, 6]}


def test_results_are_json_text_and_a_picture() -> None:
    """All three tell every row."""
    contenders = {"castoff": (4.0, 0.0), "containerd": (29.0, 12.0)}
    rows = [Row("cold", "one & <two>", 7.123456789, "x", at_least(6), {"contenders": contenders})]
    value = json.loads(to_json(rows, command="make bench", seconds=1.0))
    assert value["rows"][0]["value"] == 7.1235
    assert value["rows"][0]["verdict"] == "met"
    assert "one & <two>" in table(rows)
    assert "one & <two>" in "".join(ElementTree.fromstring(chart.svg(rows)).itertext())


def test_the_readme_tells_what_was_measured() -> None:
    """Its numbers are those of the published results, and the published picture is theirs too."""
    root = Path(__file__).parents[2]
    results = (root / "docs/bench/results.json").read_text()
    text = (root / "README.md").read_text()
    assert readme.replaced(text, json.loads(results)) == text
    with pytest.raises(ValueError, match="one pair"):
        readme.replaced(text + text, json.loads(results))
    assert chart.svg(from_json(results)) == (root / "docs/bench/chart.svg").read_text()


def test_a_boot_is_drawn_from_what_was_seen() -> None:
    """The record goes through JSON as one line; each run of chunks is one stroke, of the colour of its time."""
    came = [Came(100, 0, 5), Came(900, 7, 1), Came(2500, 5, 2), Came(2600, 8, 92)]
    assert boot_chart.decode(boot_chart.encode(came)) == came
    drawn = boot_chart.svg({"came": boot_chart.encode(came), "chunks": 100, "vmm": 0.5, "ready": 1.0, "complete": 2.7})
    paths = [path for path in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}path") if path.get("stroke-width")]
    assert [path.attrib["d"].count("M") for path in paths] == [2, 2]
    assert "ready, 1.0 s: 6 chunks are here" in drawn
