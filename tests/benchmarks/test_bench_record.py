"""The benchmark's book-keeping: rows are kept, replaced and turned into the tables of the documents."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
if not (BENCHMARKS / "harness" / "record.py").exists():
    pytest.skip("needs the project's benchmarks beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import backend_table  # noqa: E402
from harness import record, table  # noqa: E402
from harness.cases import CASES  # noqa: E402
from harness.race import Outcome  # noqa: E402


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


# --- README's few rows ------------------------------------------------------------------------------------------------
def page_rows(page: str) -> list[str]:
    """The rows between the markers of a page of the project, without the heads of the tables."""
    text = (ROOT / page).read_text(encoding="utf-8")
    begin = table.HEADLINE_BEGIN if table.HEADLINE_BEGIN in text else table.BEGIN
    lines = text.partition(begin)[2].partition(table.END)[0].splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| case |")]


def test_the_headline_has_at_most_twelve_rows_and_every_one_is_a_case(tmp_path, monkeypatch):
    assert len(table.HEADLINE) + len(table.GPU_HEADLINE) <= 12
    measured = {row["case"] for rows in table.device_rows(table.RESULTS) for row in rows}
    assert set(table.HEADLINE) <= measured
    assert set(table.GPU_HEADLINE) <= set(CASES)
    gpu_row(tmp_path, monkeypatch)  # "dense 64 forward", which is none of them
    assert table.headline(tmp_path).count("not measured") == 2
    for key in table.GPU_HEADLINE:
        gpu_row(tmp_path, monkeypatch, title=CASES[key].title)
    lines = table.headline(tmp_path).splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == [
        "| case", *(f"| {CASES[key].title}" for key in table.GPU_HEADLINE)
    ]  # fmt: skip


def test_the_headline_takes_the_device_that_was_measured_last(tmp_path):
    for device, measured, ours in (("a", "2026-01-02", 1.0), ("b", "2026-01-01", 2.0)):
        path = comparison(table.HEADLINE[0], ours, 3.0, None).save(tmp_path / "made")
        kept = json.loads(path.read_text())
        kept["rows"][0] |= {"measured": measured}
        (tmp_path / device).mkdir()
        (tmp_path / device / "gather.json").write_text(json.dumps(kept))
    assert f"| {table.HEADLINE[0]} | 1 s | 3 s (eager) | 3.00× |  |" in table.headline(tmp_path)
    assert "2 s" not in table.headline(tmp_path)
    assert "2 s" in table.table(tmp_path)


def test_pages_hold_what_the_results_hold():
    """README the headline, docs/benchmarks.md every row, as the tool writes them from the results that are here."""
    short, long = page_rows("README.md"), page_rows("docs/benchmarks.md")
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    written = table.table().splitlines()
    assert 0 < len(short) <= 12
    for row in short:  # a GPU's rows are longer there, by what ours reaches
        assert any(other.startswith(row) for other in long), "run benchmarks/harness/table.py"
    assert {row for row in long if "| not measured |" not in row} <= set(written), "run benchmarks/harness/table.py"
    for rows in table.device_rows(table.RESULTS):  # a device that was measured here alone is on no page yet
        if f"Measured on {rows[0]['device']['name']};" in text:
            assert {f"| {row['case']} |" for row in rows} <= {row[: row.index(" |") + 2] for row in long}
    for case in CASES.values():
        assert f"| {case.title} |" in text


# --- GPU rows ---------------------------------------------------------------------------------------------------------
def outcomes() -> dict[str, Outcome]:
    return {
        "triton": Outcome("triton", [1e-3, 1.1e-3, 0.9e-3], error=0.004, peak_bytes=2**30, setup_seconds=3.21),
        "flash": Outcome("flash", [1.5e-3] * 3, error=0.003),
        "cudnn": Outcome("cudnn", [1.2e-3] * 3, error=0.003),
        "broken": Outcome("broken", failed="RuntimeError: no | kernel"),
    }


def gpu_row(tmp_path: Path, monkeypatch, **changes) -> record.Comparison:
    info = {"kind": "cuda", "name": "NVIDIA Test 1", "driver": "580.1", "cuda": "13.0"}
    monkeypatch.setattr(record, "device_info", lambda kind: info)
    arguments = {"bar": 1.1, "extra": {"rate": {"tflops": 400.0, "of_matmul": 0.5}}, **changes}
    title = arguments.pop("title", CASES["dense 64 forward"].title)
    rivals = arguments.pop("rivals", ["flash", "cudnn", "broken"])
    ours = arguments.pop("ours", "triton")
    comparison = record.Comparison.of("gpu_attention", title, outcomes(), ours, rivals, **arguments)
    comparison.save(tmp_path)
    return comparison


def test_a_race_becomes_a_row_against_its_strongest_rival(tmp_path, monkeypatch):
    comparison = gpu_row(tmp_path, monkeypatch)
    (row,) = json.loads((tmp_path / "nvidia-test-1" / "gpu_attention.json").read_text())["rows"]
    assert row["rival"]["name"] == "cudnn"
    assert row["ratio"] == comparison.ratio == pytest.approx(1.2)
    assert row["bar_met"] is True
    field = {c["name"]: c for c in row["extra"]["contenders"]}
    assert field["broken"]["failed"] == "failed: RuntimeError: no | kernel"
    assert (field["triton"]["peak_mib"], field["triton"]["relative_error"]) == (1024, 0.004)
    assert field["flash"]["median"] == 1.5e-3
    text = table.table(tmp_path)
    assert "| 1 ms | 1.2 ms (cudnn) | **1.20×** | ≥ 1.1× | 400 TFLOP/s, 50% of a big product |" in text
    assert text.count("not measured") >= 3 * (len(CASES) - 1)
    assert "driver 580.1, CUDA 13.0" in text


def test_a_run_tells_what_it_waits_and_takes():
    facts = {"images": 32, "waiting": 0.0123, "cores_busy": 2.34}
    row = {"ours": {"median": 0.0625}, "extra": facts}
    assert table.rate_cell(row) == "512 images/s; waits for images: 1.2% of the time; 2.3 cores busy"
    untold = {**row, "extra": {**facts, "waiting": None}}
    assert table.rate_cell(untold) == "512 images/s; waits for images: not measured; 2.3 cores busy"


def test_failed_rows_stand_in_the_table_and_promise_nothing(tmp_path, monkeypatch):
    comparison = gpu_row(tmp_path, monkeypatch, ours="broken", rivals=["flash"])
    assert (comparison.ratio, comparison.bar_met) == (None, False)
    assert "| failed: RuntimeError: no / kernel | 1.5 ms (flash) | – | ≥ 1.1× (missed) |" in table.table(tmp_path)
    comparison = gpu_row(tmp_path, monkeypatch, rivals=["broken"])
    assert (comparison.ratio, comparison.bar_met) == (None, None)
    assert "≥ 1.1× (not known)" in table.table(tmp_path)


def test_out_gets_a_copy_of_the_results(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    gpu_row(tmp_path / "results", monkeypatch)
    where = Path("nvidia-test-1", "gpu_attention.json")
    assert (tmp_path / "out" / "results" / where).read_text() == (tmp_path / "results" / where).read_text()


def test_without_a_gpu_the_table_says_not_measured(tmp_path):
    text = table.table(tmp_path)
    for case in CASES.values():
        assert f"| {case.title} | not measured | {case.rival} | not measured |" in text
    (tmp_path / "compile").mkdir()
    (tmp_path / "compile" / "attention.json").write_text('[{"kernel": "not a row"}]')
    assert table.table(tmp_path) == text


def test_sources_without_git_are_known_by_a_digest(monkeypatch):
    record.commit.cache_clear()
    monkeypatch.setattr(record, "_answer", lambda *command: "")
    try:
        assert record.commit().startswith("sources ")
    finally:
        record.commit.cache_clear()


def test_a_repository_around_a_copy_says_nothing_about_it(tmp_path, monkeypatch):
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    copy = tmp_path / "copy"
    (copy / "csrc").mkdir(parents=True)
    (copy / "csrc" / "a.cpp").write_text("int a;")
    monkeypatch.setattr(record, "ROOT", copy)
    record.commit.cache_clear()
    try:
        assert record.commit().startswith("sources ")
        monkeypatch.setattr(record, "ROOT", tmp_path)
        record.commit.cache_clear()
        assert re.fullmatch(r"[0-9a-f]{7,}", record.commit())
    finally:
        record.commit.cache_clear()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/venv/bin/pytest", "benchmarks", "-q"], "python -m pytest benchmarks -q"),
        (
            ["/lib/pytest/__main__.py", "-c", "/src/pyproject.toml", "--rootdir=/src", "--junitxml=/tmp/a.xml", "-q",
             "/src/benchmarks/bench_gpu_mae.py"],
            "python -m pytest -c pyproject.toml -q benchmarks/bench_gpu_mae.py",
        ),
        (["/lib/pytest/__main__.py", "-c", "/etc/a.toml", "-k", "a or b"], "python -m pytest -k 'a or b'"),
        (["/src/benchmarks/plan_table.py", "vit base"], "python benchmarks/plan_table.py 'vit base'"),
    ],
)  # fmt: skip
def test_a_rows_command_can_be_pasted_anywhere(monkeypatch, words, said):
    monkeypatch.delenv("HDXRAY_BENCH", raising=False)
    assert record.command_line(words, Path("/src")) == said
    monkeypatch.setenv("HDXRAY_BENCH", "quick")
    assert record.command_line(words, Path("/src")) == f"HDXRAY_BENCH=quick {said}"


def test_no_row_that_is_here_names_a_place_of_its_machine():
    for rows in table.device_rows(table.RESULTS):
        for row in rows:
            assert not re.search(r"(^|[ =])/", row["command"]), row["case"]


def test_rows_are_held_against_todays_bar(tmp_path):
    case = CASES["step base cross compiled"]
    row = {"case": case.title, "ratio": 7.9, "bar": 5.0, "bar_met": True}
    assert table.at_todays_bar(row) == {**row, "bar": case.bar, "bar_met": case.bar <= 7.9}
    withdrawn = {"case": CASES["step base self"].title, "ratio": 0.98, "bar": 1.8, "bar_met": False}
    assert table.at_todays_bar(withdrawn) == {**withdrawn, "bar": None, "bar_met": None}
    other = {"case": "a case of no GPU", "ratio": 2.0, "bar": 1.0, "bar_met": True}
    assert table.at_todays_bar(other) == other


NOISY = {"ours": [0.995, 1.0, 1.01], "rival": [0.998, 1.005, 1.011], "rival_name": "timm ViT"}


def test_a_bar_within_the_noise_of_its_ratio_is_neither_met_nor_missed(tmp_path):
    for case, bar in (("at its noise", 1.0), ("under it", 0.9), ("over it", 1.1)):
        record.Comparison("encoder", case, **NOISY, bar=bar).save(tmp_path)
    record.Comparison("encoder", "one sample", [1.0], [1.005], "timm ViT", bar=1.0).save(tmp_path)
    (path,) = tmp_path.glob("*/encoder.json")
    rows = {row["case"]: row for row in json.loads(path.read_text())["rows"]}
    found = {case: (row["bar_met"], row["bar_within_noise"]) for case, row in rows.items()}
    assert found == {
        "at its noise": (True, True), "under it": (True, False), "over it": (False, False), "one sample": (True, None),
    }  # fmt: skip
    text = table.table(tmp_path)
    assert "| at its noise | 1 s | 1 s (timm ViT) | 1.00× | ≥ 1× (within its noise: 0.997 to 1.011) |" in text
    assert "| under it | 1 s | 1 s (timm ViT) | **1.00×** | ≥ 0.9× |" in text
    assert "| over it | 1 s | 1 s (timm ViT) | 1.00× | ≥ 1.1× (missed) |" in text
    assert "| one sample | 1 s | 1 s (timm ViT) | **1.00×** | ≥ 1× |" in text


def test_the_terminal_says_a_bar_is_within_its_noise():
    told = record.Comparison("encoder", "every patch", **NOISY, bar=1.0).told()
    assert told == "every patch: 1.00x timm ViT (bar 1: within its noise: 0.997 to 1.011)"
    assert record.Comparison("encoder", "every patch", **NOISY).told() == "every patch: 1.00x timm ViT"


def test_rows_that_were_kept_before_are_told_by_their_quartiles():
    """A file of then has no `bar_within_noise`; 1.005 against 1, its quartiles 0.993 and 1.016, was printed as met."""
    ours = {"median": 11.464, "q25": 11.358, "q75": 11.481, "rounds": 5}
    rival = {"median": 11.522, "q25": 11.395, "q75": 11.537, "rounds": 5}
    row = {"ours": ours, "rival": {"name": "timm ViT", **rival}, "ratio": 1.005, "bar": 1.0, "bar_met": True}
    assert table.bar_cell(row) == "≥ 1× (within its noise: 0.993 to 1.016)"
    assert table.ratio_cell(row) == "1.00×"


def test_the_attention_table_is_what_the_results_say():
    """For devices whose results are here: ``backend="auto"`` takes what was measured."""
    kept = json.loads((ROOT / "hdxray_fast/ops/attention_table.json").read_text(encoding="utf-8"))
    for device, found in backend_table.measured(record.RESULTS).items():
        assert kept[device] == found


def test_cases_and_benchmarks_name_each_other():
    for case in CASES.values():
        assert (BENCHMARKS / f"bench_{case.bench}.py").is_file(), case
    assert len({case.title for case in CASES.values()}) == len(CASES)
