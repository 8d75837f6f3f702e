"""A report model's own split is found again by every command, wherever the data lie; or a test on it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from report_makers import write_csv
from report_model_makers import ENGLISH, QUICK, radiograph, save_small_encoder

pytest.importorskip("transformers")

from hdxray_fast.cli.main import main
from hdxray_fast.data import radiographs
from hdxray_fast.data.seen import DRAWN_FILE, SEEN_FILE
from hdxray_fast.data.seen_key import KEY_FILE
from hdxray_fast.data.splits import patient_place
from hdxray_fast.errors import CheckpointError, ConfigError
from hdxray_fast.images.contour import find_contour
from hdxray_fast.reports.compare import compare_reports
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.reports.evaluate import evaluate_reports
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.reports.own_split import (
    overlap_with,
    read_of_run,
    read_own_split,
    record_of_model,
    record_of_predictions,
)
from hdxray_fast.reports.predictions import Prediction, read_predictions, write_predictions
from hdxray_fast.reports.run import run_report_training
from hdxray_fast.reports.saving import load_report_model
from hdxray_fast.reports.writing import write_reports
from hdxray_fast.reports.writing_options import WritingOptions

PATIENTS, SEED = 24, 3


def rows(patient: str = "patient", image: str = "image", **more) -> list[dict]:
    return [
        {"id": f"s{i}", image: f"{i}.png", "report": ENGLISH[i % 4], patient: f"p{i}", **more} for i in range(PATIENTS)
    ]


def places(seed: int) -> dict[str, str]:
    """The rule in words: a hash of seed and patient, a fifth to the test and the next tenth to validation."""
    at = {f"p{i}": patient_place(f"p{i}", seed) for i in range(PATIENTS)}
    return {name: "test" if place < 0.2 else "val" if place < 0.3 else "train" for name, place in at.items()}


def of(split: str, seed: int = SEED) -> set[str]:
    return {f"s{name[1:]}" for name, own in places(seed).items() if own == split}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with ``studies.csv`` and a ``run`` of another ``seed`` than its ``split_seed``."""
    folder = tmp_path_factory.mktemp("own_split")
    encoder = save_small_encoder(folder / "encoder")
    for i in range(PATIENTS):
        radiograph(folder / f"{i}.png", i % 4, i)
    data = write_csv(folder / "studies.csv", rows())
    config = ReportConfig(
        data=str(data),
        out=str(folder / "run"),
        weights=str(encoder),
        seed=1,
        split_seed=SEED,
        **QUICK,
    )
    run_report_training(config, progress=False)
    return folder


def test_the_model_says_how_its_split_was_drawn(trained):
    record = load_report_model(trained / "run").seen
    assert {name: record.origin[name] for name in ("seed", "val_share", "test_share", "draw")} == {
        "seed": SEED, "val_share": 0.1, "test_share": 0.2, "draw": "by patient id",
    }  # fmt: skip
    assert record.splits_of(list(places(SEED))) == places(SEED)
    assert len(record.keys["pixels"]) == len(of("train")) + len(of("val"))
    assert json.loads((trained / "run" / "model" / "report.json").read_text())["splits"] == record.origin


def test_generate_and_evaluate_find_it_in_another_folder_under_other_column_names(trained, tmp_path, capsys):
    """Before, both drew anew with seed 0: most of what they tested on had been trained on."""
    assert of("test") and of("test") != of("test", 0)
    for path in trained.glob("*.png"):
        shutil.copy(path, tmp_path)
    data = write_csv(tmp_path / "moved.csv", rows("PatientID", "path", comment="new")[::-1])
    shutil.copytree(trained / "run" / "model", tmp_path / "model")
    shutil.copy(trained / "run" / KEY_FILE, tmp_path)
    out = tmp_path / "out"
    command = ["report", "generate", "--data", str(data), "--model", str(tmp_path / "model"), "--out", str(out)]
    command += ["--pictures", "0", "--num-beams", "1", "--max-length", "8", "--workers", "0"]
    assert main(command) == 0
    assert {row.id for row in read_predictions(out / "predictions.csv")} == of("test")
    told = capsys.readouterr().err
    assert f"drawn by patient, split_seed {SEED}" in told and "trained or validated on" not in told
    for _ in range(2):  # by what lies beside the predictions, and by the model
        command = ["report", "evaluate", str(out / "predictions.csv"), "--data", str(data)]
        command += ["--out", str(out / "scores"), "--bootstraps", "0", "--meteor", "false"]
        assert main([*command, "--model", str(tmp_path / "model")]) == 0
        metrics = json.loads((out / "scores" / "metrics.json").read_text())
        assert metrics["studies"] == len(of("test")) and metrics["seen"]["studies"] == 0
        assert main(command) == 0
        assert json.loads((out / "scores" / "metrics.json").read_text()) == metrics
        (tmp_path / "model" / SEEN_FILE).unlink(missing_ok=True)  # how they were drawn is known without it, too
        (tmp_path / "model" / SEEN_FILE).write_bytes((out / SEEN_FILE).read_bytes())
    assert main([*command, "--split-seed", "0"]) == 2
    assert f"--split-seed: got 0, but the model was trained on patients of {data}" in capsys.readouterr().err


def test_evaluations_are_compared_on_the_split_that_they_were_made_on(trained, tmp_path):
    """Their folders hold no record of a model; before, the test split was drawn anew with seed 0."""
    pytest.importorskip("scipy")
    data = str(trained / "studies.csv")
    for name, text in {"a": ENGLISH[0], "b": ENGLISH[1]}.items():
        write_predictions(tmp_path / f"{name}.csv", [Prediction(study, text) for study in sorted(of("test"))])
        words = ["report", "evaluate", str(tmp_path / f"{name}.csv"), "--data", data, "--out", str(tmp_path / name)]
        words += ["--bootstraps", "0", "--meteor", "false", "--workers", "0"]
        assert main([*words, *(["--split-seed", str(SEED)] if name == "b" else ["--model", str(trained / "run")])]) == 0
    told = json.loads((tmp_path / "a" / "metrics.json").read_text())["splits"]
    assert told == {"draw": "by patient id", "seed": SEED, "val_share": 0.1, "test_share": 0.2}
    report = compare_reports({"a": tmp_path / "a", "b": tmp_path / "b"}, data=data, bootstraps=20)
    assert report["studies"] == len(of("test")) and not any("does not say how" in note for note in report["notes"])
    (tmp_path / "a" / "metrics.json").write_text('{"splits": {"seed": "x"}}')
    assert record_of_predictions(tmp_path / "a" / "scores.csv") is None


def test_a_model_without_its_key_draws_the_same_and_knows_nobody(trained, tmp_path):
    shutil.copytree(trained / "run" / "model", tmp_path / "model")
    record = record_of_model(tmp_path / "model")
    table = read_own_split(trained / "studies.csv", record)
    assert {s.id for s in table.split("test")} == of("test") and table.known == 0
    assert table.notes[-1].startswith(f"the {KEY_FILE} of the model's run is not beside it: whether the model was")
    assert overlap_with(record, table.split("train"), "train", "studies.csv") is None
    with_key = record_of_model(trained / "run")
    assert overlap_with(with_key, table.split("train"), "train", "studies.csv").share == 1


def test_without_the_record_the_rule_draws_the_same(trained, tmp_path):
    shutil.copytree(trained / "run" / "model", tmp_path / "model")
    (tmp_path / "model" / SEEN_FILE).unlink()
    model = load_report_model(tmp_path / "model")  # its removal makes the folder no less whole
    assert {s.id for s in read_own_split(trained / "studies.csv", model.seen).split("test")} == of("test")


def test_a_changed_table_is_refused_or_the_overlap_told(trained, tmp_path):
    record = record_of_model(trained / "run")
    own = [Prediction(f"s{i}", ENGLISH[0]) for i in range(PATIENTS)]
    options = {"model": trained / "run", "bootstraps": 0, "meteor": False, "images": trained}
    # a patient more and one less, drawn: whom the model knows stays where it was
    data = write_csv(tmp_path / "more.csv", [*rows()[1:], {**rows()[0], "id": "n0", "patient": "n0"}])
    table = read_own_split(data, record, images=trained)
    assert {s.id for s in table.split("train") if s.id[0] == "s"} == of("train") - {"s0"}
    told = f"another table than the model was trained on: {PATIENTS - 1} of its {PATIENTS} patients are known"
    assert any(told in note for note in table.notes)
    # given splits that test on the training
    turned = [{**row, "split": "test" if places(SEED)[row["patient"]] == "train" else "train"} for row in rows()]
    data = write_csv(tmp_path / "turned.csv", turned)
    with pytest.raises(ConfigError, match=r"^split: .*turned.csv: the model was trained or validated on \d+ of these"):
        evaluate_reports(own, data=data, **options)
    found = evaluate_reports(own, data=data, allow_training_patients=True, **options)
    assert found.metrics["seen"]["share"] == 1
    # and some of it
    few = [*sorted(of("train"))[:2], *sorted(of("test"))[:3]]
    assert len(few) >= 4
    some = [{**row, "split": "test" if row["id"] in few else "train"} for row in rows()]
    found = evaluate_reports(own, data=write_csv(tmp_path / "some.csv", some), **options)
    assert any(f"was trained or validated on 2 of these {len(few)} studies" in note for note in found.notes)
    # other patients under ids that are places in a file are nobody that the model knows
    bare = write_csv(tmp_path / "bare.csv", [{"image": row["image"], "report": row["report"]} for row in rows()])
    assert read_own_split(bare, record, images=trained).known == 0


def test_a_model_of_an_earlier_release_is_said_to_be_one(trained, tmp_path):
    """It draws as it did, with the seed that is asked for."""
    shutil.copytree(trained / "run" / "model", tmp_path / "model")
    (tmp_path / "model" / SEEN_FILE).unlink()
    settings = json.loads((tmp_path / "model" / "report.json").read_text())
    del settings["splits"]
    (tmp_path / "model" / "report.json").write_text(json.dumps(settings))
    assert record_of_model(tmp_path / "model") is None
    table = read_own_split(trained / "studies.csv", None, split_seed=SEED)
    assert {s.id for s in table.split("test")} == of("test")
    assert table.notes[-1].startswith("the model behind this does not say how its own split was drawn")


def test_a_run_that_goes_on_keeps_its_split(trained, tmp_path):
    """Also one that was begun when ``seed`` drew the splits."""
    config = ReportConfig(data=str(trained / "studies.csv"), out=str(tmp_path), seed=SEED, resume="auto", **QUICK)
    (tmp_path / "config.json").write_text(json.dumps({"seed": SEED}))
    table, begun = read_of_run(config)
    assert {s.id for s in table.split("test")} == of("test") and not begun
    shutil.copy(trained / "run" / DRAWN_FILE, tmp_path)
    with pytest.raises(CheckpointError, match=rf"{KEY_FILE}: is missing or another run's, and {DRAWN_FILE} cannot"):
        read_of_run(config)
    shutil.copy(trained / "run" / KEY_FILE, tmp_path)
    table, begun = read_of_run(ReportConfig(**{**config.as_dict(), "split_seed": 5}))
    assert {s.id for s in table.split("test")} == of("test") and begun


def test_splits_are_of_all_studies_whatever_can_be_read(tmp_path):
    """An evaluation, which asks for no images, has the patients of a training that lacked some."""
    data = write_csv(tmp_path / "studies.csv", [{**row, "image": f"{i % 5}.png"} for i, row in enumerate(rows())][:5])
    radiograph(tmp_path / "0.png", 0)
    origins = [read_studies(data, need_images=asked).origin for asked in (True, False)]
    assert origins[0] == origins[1]


def test_reports_are_written_with_the_contours_of_the_training(trained, monkeypatch):
    """Before, always with those of the network."""
    asked = []

    def found(canvas, method, **options):
        asked.append(method)
        return find_contour(canvas, method, **options)

    monkeypatch.setattr(radiographs, "find_contour", found)
    write_reports(
        str(trained / "0.png"), trained / "run", options=WritingOptions(num_beams=1, max_length=4), pictures=0
    )
    assert asked == ["rectangle"]
