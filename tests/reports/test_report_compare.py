"""Report models compared by pairs: the same studies or a refusal, and differences of the scores as they are defined."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
from report_corpus import CASES
from report_makers import write_csv

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.reports.evaluate import evaluate_reports
from hdxray_fast.reports.evaluation_files import write_evaluation
from hdxray_fast.reports.predictions import Prediction, write_predictions

pytest.importorskip("scipy")

TRUE = [Prediction(f"case{i:02d}", case.english, case.english) for i, case in enumerate(CASES)]


def shortened(share: float, shift: int = 0) -> list[Prediction]:
    """The true reports with the first words of each alone, and ``shift`` studies with another's report."""
    words = [row.generated.split() for row in TRUE]
    made = [" ".join(text[: max(1, round(share * len(text)))]) for text in words]
    return [
        replace(row, generated=made[(i + 1) % len(made)] if i < shift else made[i]) for i, row in enumerate(TRUE)
    ]  # fmt: skip


@pytest.fixture
def two(tmp_path):
    write_predictions(tmp_path / "worse.csv", shortened(0.5, 6))
    write_predictions(tmp_path / "better.csv", shortened(0.9))
    return tmp_path


def test_differences_are_those_of_the_scores(two):
    report = hx.compare_reports({"worse": two / "worse.csv", "better": two / "better.csv"}, two / "out", bootstraps=400)
    (entry,) = report["comparisons"][0]["languages"]["en"]
    whole = {
        name: evaluate_reports(two / f"{name}.csv", bootstraps=0, meteor=False).metrics["languages"]["en"]["scores"][0]
        for name in ("worse", "better")
    }
    assert set(entry["scores"]) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d"}
    for name, row in entry["scores"].items():
        assert row["first"] == pytest.approx(whole["worse"][name], abs=1e-9)
        assert row["second"] == pytest.approx(whole["better"][name], abs=1e-9)
        assert row["low"] < row["difference"] < row["high"]
        assert row["low"] > 0
        assert row["p"] < 0.05
    assert (report["studies"], report["drawn"]) == (20, "20 studies")
    written = {path.name for path in (two / "out").iterdir()}
    assert written == {".made-by", "comparison.json", "comparison.csv", "comparison.md", "forest.png"}
    assert json.loads((two / "out" / "comparison.json").read_text()) == json.loads(json.dumps(report))
    with (two / "out" / "comparison.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["score"] for row in rows] == list(entry["scores"])
    assert float(rows[0]["difference"]) == pytest.approx(entry["scores"]["bleu1"]["difference"], rel=1e-5)


def test_the_same_reports_differ_in_nothing_and_evaluations_are_read(two):
    write_evaluation(evaluate_reports(two / "worse.csv", bootstraps=0, meteor=False), two / "scored")
    report = hx.compare_reports([str(two / "worse.csv"), str(two / "scored")], bootstraps=100)
    for row in report["comparisons"][0]["languages"]["en"][0]["scores"].values():
        assert row["low"] == row["high"] == row["difference"] == 0
        assert row["p"] == pytest.approx(1, abs=0.02)


def test_patients_are_drawn_where_they_are_known(two):
    rows = [
        {"id": row.id, "report": row.reference, "image": f"{row.id}.png", "patient": f"p{i // 4}", "split": "test"}
        for i, row in enumerate(TRUE)
    ]
    table = write_csv(two / "studies.csv", rows)
    names = {"worse": two / "worse.csv", "better": two / "better.csv"}
    report = hx.compare_reports(names, data=table, bootstraps=100)
    assert report["drawn"] == "5 patients"
    few = [{**row, "patient": f"p{i // 5}"} for i, row in enumerate(rows)]
    report = hx.compare_reports(names, data=write_csv(two / "few.csv", few), bootstraps=100)
    assert report["comparisons"][0]["languages"]["en"][0]["scores"]["bleu4"]["low"] is None  # four are too few


def test_what_is_not_of_the_same_studies_is_refused_by_name(two):
    write_predictions(two / "fewer.csv", TRUE[1:])
    with pytest.raises(hx.ConfigError, match=r"1 studies of .*worse\.csv are not in .*fewer\.csv, the first is row "):
        hx.compare_reports([str(two / "worse.csv"), str(two / "fewer.csv")], two / "none")
    with pytest.raises(hx.ConfigError, match=r"1 studies of .*worse\.csv are not in .*fewer\.csv"):
        hx.compare_reports([str(two / "fewer.csv"), str(two / "worse.csv")], two / "none")
    write_predictions(two / "other.csv", [replace(TRUE[0], reference="Something else."), *TRUE[1:]])
    with pytest.raises(hx.ConfigError, match=r"other\.csv has other references than .* for 1 of 20 studies"):
        hx.compare_reports([str(two / "worse.csv"), str(two / "other.csv")], two / "none")
    with pytest.raises(hx.ConfigError, match="holds neither"):
        hx.compare_reports([str(two / "worse.csv"), str(two / "none")])
    assert not list((two / "none").iterdir())


def test_the_command_tells_reports_from_predictions(two, capsys):
    out = str(two / "out")
    assert main(["compare", str(two / "worse.csv"), str(two / "better.csv"), "--out", out, "--bootstraps", "100"]) == 0
    told = capsys.readouterr().out
    assert "better minus worse: language en" in told
    assert "| CIDEr-D |" in told
    labelled = "image,edema,label edema\n" + "".join(f"{i}.png,0.{i},{i % 2}\n" for i in range(10))
    (two / "classes.csv").write_text(labelled)
    assert main(["compare", str(two / "worse.csv"), str(two / "classes.csv"), "--out", out]) == 2
    assert "classes.csv are a classifier's predictions and generated reports" in capsys.readouterr().err
    words = ["compare", str(two / "worse.csv"), str(two / "better.csv"), "--out", out, "--classes", "edema"]
    assert main(words) == 2
    assert "--classes: has no meaning for reports" in capsys.readouterr().err


def test_refusals_name_options_that_there_are(two, capsys):
    rows = [{"id": row.id, "befund": row.reference, "image": f"{row.id}.png", "split": "test"} for row in TRUE]
    data = write_csv(two / "more.csv", [*rows, {**rows[0], "id": "another", "image": "another.png"}])
    words = ["compare", str(two / "worse.csv"), str(two / "better.csv"), "--out", str(two / "out")]
    words += ["--bootstraps", "20", "--data", str(data)]
    assert main(words) == 2
    assert "(or 'findings' and 'impression', or --report-column)" in capsys.readouterr().err
    words += ["--report-column", "befund"]
    assert main(words) == 2
    assert "generate theirs too, or score the others with --partial\n" in capsys.readouterr().err
    assert main([*words, "--partial"]) == 0
    assert "not scored: no generated text" in capsys.readouterr().out
    (two / "bare.csv").write_text("id,generated\ncase00,The heart is normal.\n")
    assert main(["compare", str(two / "worse.csv"), str(two / "bare.csv"), "--out", str(two / "out")]) == 2
    assert "; give --data, or a column 'reference'" in capsys.readouterr().err
