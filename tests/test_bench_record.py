"""The benchmark's book-keeping: rows are kept, replaced and turned into README's table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
if not (BENCHMARKS / "record.py").exists():
    pytest.skip("needs the project's benchmarks beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import record  # noqa: E402
import table  # noqa: E402


def comparison(case: str, ours: float, rival: float, bar: float | None) -> record.Comparison:
    return record.Comparison("gather", case, [ours] * 3, [rival] * 3, "eager", bar=bar)


def test_a_row_replaces_the_one_of_its_case_and_leaves_others(tmp_path):
    comparison("b", 1.0, 2.0, 2).save(tmp_path)
    comparison("a", 1.0, 2.0, 4).save(tmp_path)
    path = comparison("b", 1.0, 30.0, 2).save(tmp_path)
    assert path == tmp_path / record.slug(record.device_info("cpu")["name"]) / "gather.json"
    first, second = json.loads(path.read_text())["rows"]
    assert (first["case"], first["ratio"], first["bar_met"]) == ("a", 2.0, False)
    assert (second["case"], second["ratio"], second["bar_met"]) == ("b", 30.0, True)
    assert second["ours"] == {"median": 1.0, "q25": 1.0, "q75": 1.0, "min": 1.0, "rounds": 3}
    assert {"torch", "numpy", "hdxray-fast", "python"} <= set(second["versions"])
    assert {"commit", "command", "measured", "threads", "device"} <= set(second)


def test_table_goes_between_the_markers_and_nowhere_else(tmp_path):
    comparison("gather", 3.2e-4, 0.0896, 20).save(tmp_path)
    comparison("loss", 0.5, 1.5, 5).save(tmp_path)
    comparison("note", 2.0, 3.0, None).save(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write(readme, tmp_path)
    text = readme.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n")
    assert text.endswith(f"{table.END}\nafter\n")
    assert "old" not in text
    assert "| gather | 320 µs | 89.6 ms (eager) | **280×** | ≥ 20× |" in text
    assert "| loss | 500 ms | 1.5 s (eager) | 3.00× | ≥ 5× (missed) |" in text
    assert "| note | 2 s | 3 s (eager) | 1.50× |  |" in text
    table.write(readme, tmp_path)
    assert readme.read_text() == text


def test_a_readme_without_markers_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(SystemExit, match="markers"):
        table.write(readme, tmp_path)
