"""Predictions in, scores under their labels out; what does not fit is refused or counted."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from report_corpus import CASES, write_two_view_studies
from report_makers import write_annotation, write_csv

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.reports.evaluate import evaluate_reports
from hdxray_fast.reports.evaluation_files import write_evaluation
from hdxray_fast.reports.evaluation_page import evaluation_page, mark_differences
from hdxray_fast.reports.evaluation_table import format_evaluation
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.reports.predictions import Prediction, read_predictions, write_predictions
from hdxray_fast.reports.r2gen_sets import SIZES

ENGLISH = [Prediction(f"case{i:02d}", case.english, case.english) for i, case in enumerate(CASES)]


@pytest.fixture(autouse=True)
def _no_java(monkeypatch, tmp_path_factory):
    """METEOR has its own tests; without Java these take no time."""
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("path")))


# Predictions as files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_predictions_come_back(tmp_path, suffix):
    rows = [
        Prediction("1", 'Says "a, b".\nAnd more.', "True.", "en"),
        Prediction("2", "", "双肺清晰。", "zh"),
    ]
    write_predictions(tmp_path / f"new/predictions{suffix}", rows)
    assert read_predictions(tmp_path / f"new/predictions{suffix}") == rows


def test_other_forms_of_predictions(tmp_path):
    def read(name: str, text: str):
        (tmp_path / name).write_text(text)
        return read_predictions(tmp_path / name)

    assert read("a.json", '{"7": "clear", "8": ""}') == [Prediction("7", "clear"), Prediction("8", "")]
    lines = '{"study_id": 7, "prediction": "clear"}\n\n{"study_id": 8, "prediction": "dry", "ground_truth": "x"}\n'
    assert read("a.jsonl", lines) == [Prediction("7", "clear"), Prediction("8", "dry", "x")]
    assert read("a.csv", "uid,report,generated\n7,true,made\n") == [Prediction("7", "made", "true")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "none of .csv, .json and .jsonl"),
        ("a.json", "{", "not a readable JSON"),
        ("a.json", "3", "holds a int"),
        ("a.json", "[]", "is empty"),
        ("a.json", "[3]", "entry 0 is no object"),
        ("a.json", '[{"id": 1}]', r"entry 0: its columns are id; needed are 'id' and 'generated'"),
        ("a.json", '[{"id": 1, "generated": 3}]', "generated is a int"),
        ("a.json", '[{"id": "", "generated": "x"}]', "has no id"),
        ("a.json", '[{"id": 1, "generated": "x", "language": "fr"}]', "entry 0: language is none of"),
        (
            "a.jsonl",
            '{"id": 1, "generated": "x"}\n{"id": 1, "generated": "y"}\n',
            "line 1 and line 2 have one id",
        ),
        ("a.jsonl", "{\n", "not a readable JSON"),
        ("a.jsonl", '{"x": "y"}\n', "line 1: the object has no key that is known; needed are 'id' and"),
        ("a.csv", "id,generated\n", "is empty"),
        ("a.csv", "id,generated\n1,clear, dry\n", "line 2: more fields"),
        ("a.csv", "id,text\n1,x\n", "row 2: its columns are id, text; needed"),
    ],
)
def test_predictions_that_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(hx.ConfigError, match=message):
        read_predictions(tmp_path / name)


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_two_view_chinese_studies(tmp_path):
    path = write_two_view_studies(tmp_path)
    table = read_studies(path)
    assert [len(table.split(name)) for name in ("train", "val", "test")] == [16, 2, 2]
    assert {len(study.images) for study in table.studies} == {2}
    assert {hx.read_canvas(image, size=64).pixels.shape for image in table.studies[0].images} == {(64, 64)}
    made = [Prediction(study.id, study.report) for study in table.studies]
    half = [Prediction(p.id, p.generated[: len(p.generated) // 2]) for p in made]
    same, worse = (evaluate_reports(rows, data=path, split="all") for rows in (made, half))
    scores = same.metrics["languages"]["zh"]["scores"]
    assert [entry["unit"] for entry in scores] == ["character", "word"]
    for entry, lower in zip(scores, worse.metrics["languages"]["zh"]["scores"], strict=True):
        assert entry["bleu4"] == pytest.approx(1.0, abs=1e-6)
        assert lower["bleu4"] < 0.6
        assert entry["studies"] == 20
    page = evaluation_page(same)
    assert page.count("data:image/jpeg;base64,") == 18  # two views of nine examples
    assert evaluate_reports(made, data=path).metrics["studies"] == 2  # the test split; the others are counted
    assert "18 generated texts not scored" in evaluate_reports(made, data=path).notes[0]


def test_what_is_written(tmp_path):
    rows = [*ENGLISH[:-1], Prediction("case19", "<b>The heart</b> & more", CASES[-1].english)]
    evaluation = evaluate_reports(rows, r2gen="iu-xray")
    out = write_evaluation(evaluation, tmp_path / "out")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(evaluation.metrics))
    raw, cleaned = metrics["languages"]["en"]["scores"]
    assert (raw["references"], cleaned["references"]) == ("raw", "r2gen-cleaned, other test set")
    assert 0.9 < raw["bleu4"] < 1
    assert raw["meteor"] == "needs Java"
    assert raw["intervals"]["bleu4"][0] < raw["bleu4"] <= raw["intervals"]["bleu4"][1]
    assert "95 % intervals over 20 studies, raw, word: BLEU-1" in format_evaluation(metrics)
    assert "intervals over" not in format_evaluation(evaluate_reports(rows, bootstraps=0).metrics)
    assert metrics["languages"]["en"]["repeats"]["flagged"] == ""
    with open(out / "scores.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 20
    assert [float(table[i]["rouge_l"]) for i in (0, 19)] == pytest.approx([1.0, 0.3], abs=0.3)
    assert table[3]["generated"] == CASES[3].english
    page = (out / "report.html").read_text()
    assert "<b>The" not in page and "&lt;" in page  # generated text is text
    shown = (out / "metrics.md").read_text()
    assert "| raw " in shown and "| needs Java |" in shown
    assert "compare within a row only" in shown
    assert format_evaluation(metrics) + "\n" == shown


def test_references_of_r2gen_take_their_words_from_the_training_split(tmp_path):
    studies = [{"id": f"s{i}", "report": CASES[i % 20].english, "image_path": f"{i}.png"} for i in range(60)]
    studies.append({"id": "rare", "report": "Dextrocardia.", "image_path": "60.png"})
    path = write_annotation(tmp_path, train=studies[:40], val=[], test=studies[40:])
    made = [Prediction(entry["id"], entry["report"]) for entry in studies[40:]]
    options = {"val_share": 0, "r2gen": "iu-xray"}
    found = evaluate_reports(made, data=path, **options).metrics["languages"]["en"]["scores"]
    assert [entry["references"] for entry in found] == ["raw", "r2gen-cleaned, other test set"]
    other = [*made[:-1], Prediction("rare", "Situs.")]
    found = evaluate_reports(other, data=path, **options).metrics["languages"]["en"]["scores"]
    assert found[0]["bleu1"] < 1 == pytest.approx(found[1]["bleu1"])  # both words are <unk> to R2Gen


def test_compatible_are_r2gens_own_test_sets_alone(tmp_path, monkeypatch):
    """Another split alone moves BLEU-4 by 0.012: what is not R2Gen's test set does not stand beside its numbers."""
    assert SIZES == {
        "iu-xray": {"train": 2069, "val": 296, "test": 590},
        "mimic-cxr": {"train": 270790, "val": 2130, "test": 3858},
    }
    monkeypatch.setitem(SIZES, "iu-xray", {"train": 40, "val": 2, "test": 18})
    studies = [{"id": f"s{i}", "report": CASES[i % 20].english, "image_path": f"{i}.png"} for i in range(60)]
    made = [Prediction(entry["id"], entry["report"]) for entry in studies]
    scored = {"meteor": False, "bootstraps": 0, "partial": True}

    def name(test: int, **options) -> str:
        path = write_annotation(tmp_path, train=studies[: 58 - test], val=studies[-2:], test=studies[58 - test : 58])
        found = evaluate_reports(options.pop("made", made), data=path, **options, **scored)
        return found.metrics["languages"]["en"]["scores"][-1]["references"]

    assert name(18) == name(18, r2gen="iu-xray") == "r2gen-compatible"
    other = "r2gen-cleaned, other test set"
    assert name(18, split="val") == name(18, made=made[:50]) == name(18, r2gen="mimic-cxr") == other
    assert name(17, r2gen="iu-xray") == other and name(17) == "raw"


def test_a_study_counts_once_or_once_for_each_radiograph(tmp_path):
    """As R2Gen counts MIMIC-CXR; whether a text was written on the study or on each of its images."""
    reports = ["the heart is large", "the lungs are clear"]
    data = write_csv(
        tmp_path / "studies.csv",
        [{"id": f"s{i}", "image": f"{i}a.png;{i}b.png" if i else f"{i}a.png", "report": reports[i]} for i in (0, 1)],
    )
    options = {"data": data, "split": "all", "meteor": False, "bootstraps": 2}
    made = [Prediction("s0", "wrong"), Prediction("s1", reports[1])]
    score = lambda **more: evaluate_reports(more.pop("made", made), **options, **more).metrics  # noqa: E731
    found = score(), score(count="images")
    assert [one["studies"] for one in found] == [2, 3]
    assert [one["languages"]["en"]["drawn"] for one in found] == ["2 studies"] * 2
    rouge = [one["languages"]["en"]["scores"][0]["rouge_l"] for one in found]
    assert rouge == pytest.approx([1 / 2, 2 / 3])
    each = [Prediction("s0/0a", "wrong"), Prediction("s1/1a", reports[1]), Prediction("s1/1b", "wrong")]
    assert score(made=each, count="images")["languages"]["en"]["scores"][0]["rouge_l"] == pytest.approx(1 / 3)
    paths = [Prediction(str(tmp_path / name), "wrong") for name in ("0a.png", "1a.png", "1b.png")]
    assert score(made=paths, count="images")["studies"] == 3
    assert "3 radiographs, each with its study's report" in format_evaluation(found[1])
    with pytest.raises(hx.ConfigError, match="count: got 'views'"):
        score(count="views")
    with pytest.raises(hx.ConfigError, match="count: images are those that data names"):
        evaluate_reports([Prediction("s0", "a", "b")], count="images")


def test_a_constant_model_is_flagged_on_terminal_and_page():
    evaluation = evaluate_reports([Prediction(p.id, "The lungs are clear.", p.reference) for p in ENGLISH])
    assert "WARNING, the model may not look at the images: the same text" in format_evaluation(evaluation.metrics)
    assert "<b>The model may not look at the images:</b> the same text for all 20 studies" in evaluation_page(
        evaluation
    )


def test_both_languages_in_one_file():
    chinese = [Prediction(f"zh{i}", case.chinese, case.chinese, "zh") for i, case in enumerate(CASES[:5])]
    evaluation = evaluate_reports([*ENGLISH, *chinese])
    assert {name: found["studies"] for name, found in evaluation.metrics["languages"].items()} == {"en": 20, "zh": 5}
    assert "5 studies, language zh" in format_evaluation(evaluation.metrics)


def test_nothing_is_dropped_in_silence(tmp_path):
    rows = [{"id": f"s{i}", "image": f"{i}.png", "report": CASES[i].english, "split": "test"} for i in range(4)]
    rows[3]["report"] = "..."
    path = write_csv(tmp_path / "studies.csv", rows)
    made = [Prediction("s0", CASES[0].english), Prediction("s1", ""), Prediction("s3", "x"), Prediction("s9", "x")]
    with pytest.raises(hx.ConfigError, match=r"1 study without generated text \(row 4\).*partial"):
        evaluate_reports(made, data=path)
    evaluation = evaluate_reports(made, data=path, partial=True)
    assert evaluation.metrics["studies"] == 2
    assert (
        evaluation.notes
        == evaluation.metrics["notes"]
        == [
            "1 study not scored: no generated text (row 4)",
            "1 generated text not scored: no such study is in the data and split (text 4)",
            "1 study not scored: the reference is empty (row 5)",
            "1 generated texts are empty; they are scored as they are",
        ]
    )
    assert all(f"note: {note}" in format_evaluation(evaluation.metrics) for note in evaluation.notes)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([Prediction("1", "x")], {}, "1 of 1 have no reference"),
        ([Prediction("1", "x", "...")], {}, "nothing can be scored.*the reference is empty"),
        ([Prediction("1", "x", "双肺清晰。")], {}, "said to be 'en' and are mostly Chinese"),
        ([Prediction("1", "x", "Lungs clear.")], {"language": "zh"}, "said to be 'zh' and are mostly not Chinese"),
        ([Prediction("1", "x", "y")], {"language": "de"}, "language: got 'de'"),
        ([Prediction("1", "x", "y")], {"r2gen": "chexpert"}, "r2gen: got 'chexpert'"),
        ([Prediction("1", "x", "y")], {"clinical": ["bleurt"]}, "clinical: got 'bleurt'"),
        ([Prediction("1", "x", "y")], {"data": "nowhere.csv"}, "does not exist"),
    ],
)
def test_evaluations_that_are_refused(rows, options, message):
    with pytest.raises(hx.ConfigError, match=message):
        evaluate_reports(rows, **options)


def test_predictions_of_other_data(tmp_path):
    path = write_two_view_studies(tmp_path, cases=CASES[:5])
    with pytest.raises(hx.ConfigError, match=r"compare its text 1 with val\[0\] of the data"):
        evaluate_reports([Prediction("x", "y")], data=path, split="val")
    with pytest.raises(hx.ConfigError, match="no study in 'holdout'"):
        evaluate_reports([Prediction("x", "y")], data=path, split="holdout")


def test_paths_in_the_place_of_ids(tmp_path, monkeypatch):
    """What `generate FOLDER` writes has names of files as ids, or paths; the data's studies are found by them."""
    path = write_two_view_studies(tmp_path / "data", "en")
    path.write_text(path.read_text(encoding="utf-8").replace("case01/0.png", "case01/alone.png"), encoding="utf-8")
    (path.parent / "images" / "case01" / "0.png").rename(path.parent / "images" / "case01" / "alone.png")
    studies = read_studies(path).studies
    monkeypatch.chdir(tmp_path)
    names = [f"data/../{Path(study.images[0]).relative_to(tmp_path)}" for study in studies[:4]]
    names[1] = "alone"
    made = [Prediction(name, study.report) for name, study in zip(names, studies, strict=False)]
    made.append(Prediction("elsewhere.png", "of no study"))
    evaluation = evaluate_reports(made, data=path, split="all", partial=True, meteor=False, bootstraps=0)
    assert [row["id"] for row in evaluation.rows] == [study.id for study in studies[:4]]
    assert evaluation.metrics["languages"]["en"]["scores"][0]["bleu4"] == pytest.approx(1)
    assert evaluation.metrics["languages"]["en"]["scores"][0]["meteor"] == "left out"
    notes = " ".join(evaluation.notes)
    assert "4 of 5 predictions are matched by their radiograph's path or name" in notes
    assert "1 generated text not scored" in notes
    made.append(Prediction(str(studies[0].images[1]), "a second text on the first study"))
    with pytest.raises(hx.ConfigError, match=r"1 study with several of them \(train\[0\]\); write one"):
        evaluate_reports(made, data=path, split="all", partial=True, meteor=False, bootstraps=0)


def test_references_that_are_mostly_unknown_words_are_said(tmp_path):
    path = write_two_view_studies(tmp_path, "en")
    evaluation = evaluate_reports(ENGLISH, data=path, split="all", r2gen="mimic-cxr", meteor=False, bootstraps=0)
    (note,) = [note for note in evaluation.notes if "<unk>" in note]
    assert "seen fewer than 10 times in the training reports" in note and int(note.split("%")[0]) > 50


def test_marked_differences():
    marked = mark_differences("The heart is <big>.", "The Heart is small.", "en")
    assert marked[0] == 'The heart is &lt;<span class="extra">big</span>&gt;.'
    assert marked[1] == 'The Heart is <span class="missed">small</span>.'
    assert mark_differences("心影大。", "心影不大。", "zh")[1] == '心影<span class="missed">不</span>大。'
    assert mark_differences("", "x", "en")[0] == ""


# The command ----------------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    pytest.importorskip("jsonargparse")
    path = write_two_view_studies(tmp_path / "data", "en")
    made = tmp_path / "predictions.csv"
    write_predictions(made, [Prediction(p.id, p.generated) for p in ENGLISH])
    arguments = ["report", "evaluate", str(made), "--data", str(path), "--split", "all", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--r2gen", "iu-xray", "--clinical", "radgraph", "--meteor", "false"]) == 0
    shown = capsys.readouterr().out
    assert "| r2gen-cleaned, other test set | word | 1.0000 | 1.0000 | 1.0000 | 1.0000 |" in shown
    assert "radgraph: needs radgraph" in shown or shutil.which("radgraph")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        ".made-by",
        "metrics.json",
        "metrics.md",
        "report.html",
        "scores.csv",
    ]
    assert main([*arguments[:2], str(tmp_path / "none.csv"), *arguments[3:]]) == 2
    assert "none.csv" in capsys.readouterr().err
    assert main([*arguments, "--r2gen", "chexpert"]) == 2
    assert "r2gen: got 'chexpert'" in capsys.readouterr().err
    assert main(["report"]) == 0
    assert main(["report", "evaluate", "--no-such-thing"]) == 2
    capsys.readouterr()
