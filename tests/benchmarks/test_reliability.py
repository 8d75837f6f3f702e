"""What the reliability scripts compare runs by."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

RELIABILITY = Path(__file__).parents[2] / "benchmarks" / "reliability"
if not (RELIABILITY / "kill_training.py").exists():
    pytest.skip("needs the project's benchmarks beside the tests", allow_module_level=True)
sys.path.insert(0, str(RELIABILITY))
pytest.importorskip("tqdm")

import kill_training  # noqa: E402


def write_log(out: Path, **changes) -> Path:
    out.mkdir()
    line = {"step": 1, "loss": 0.5, "images_per_s": 7.0, "data_wait_s": 0.1, **changes}
    (out / "log.jsonl").write_text(json.dumps(line) + "\n")
    return out


def test_two_runs_have_the_same_log_but_for_the_clock(tmp_path):
    one = kill_training.log_of(write_log(tmp_path / "one"))
    assert one == kill_training.log_of(write_log(tmp_path / "slower", images_per_s=3.0, data_wait_s=0.4))
    assert one != kill_training.log_of(write_log(tmp_path / "other", loss=0.6))


def test_what_a_killed_save_left_is_told_from_what_stays(tmp_path):
    for name in (".run.lock", "cache/.lock", ".made-by", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert kill_training.left_over(tmp_path) == []
    (tmp_path / "checkpoints" / ".step_00000004.7.0123456789abcdef.tmp").mkdir(parents=True)
    assert kill_training.left_over(tmp_path) == [".step_00000004.7.0123456789abcdef.tmp"]
