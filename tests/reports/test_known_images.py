"""Radiographs that a report model was trained on, under other ids: told by generate, counted by evaluate."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from film_makers import compressed, draw_film
from report_makers import write_csv
from report_model_makers import ENGLISH, QUICK, save_small_encoder

pytest.importorskip("transformers")

from hdxray_fast.cli.main import main
from hdxray_fast.data import radiographs
from hdxray_fast.errors import ConfigError
from hdxray_fast.reports import writing
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.reports.evaluate import evaluate_reports
from hdxray_fast.reports.known_images import KNOWN_FILE, read_known_images
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.reports.own_split import overlap_with
from hdxray_fast.reports.run import run_report_training
from hdxray_fast.reports.saving import load_report_model
from hdxray_fast.reports.writing import write_reports
from hdxray_fast.reports.writing_options import WritingOptions


def film(number: int) -> np.ndarray:
    blobs = np.random.default_rng(1000 + number).normal(0, 25, (20, 20))
    detail = cv2.resize(blobs, (400, 400), interpolation=cv2.INTER_CUBIC)
    return np.clip(draw_film(number) + detail, 0, 255).astype(np.uint8)


def study(name: str, number: int, split: str, patient: str) -> dict:
    return {"id": name, "image": f"{name}.png", "report": ENGLISH[number % 4], "patient": patient, "split": split}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("known")
    encoder = save_small_encoder(root / "encoder")
    for number in range(16):
        cv2.imwrite(str(root / f"s{number}.png"), film(number))
    for number in range(4):
        cv2.imwrite(str(root / f"copy{number}.png"), compressed(film(number), 80))
    cv2.imwrite(str(root / "c10.png"), compressed(film(10), 80))
    train = [study(f"s{i}", i, "", f"p{i}") for i in range(10)]
    rows = [{**row, "split": "train"} for row in train] + [study("s10", 2, "val", "p10"), study("s11", 3, "val", "p11")]
    data = write_csv(root / "studies.csv", rows)
    config = ReportConfig(data=str(data), out=str(root / "run"), weights=str(encoder), **QUICK)
    run_report_training(config, progress=False)
    return root


def generated(root: Path, out: Path, copies: int) -> tuple[Path, Path, list[str]]:
    rows = [study(f"copy{i}", i, "test", f"q{i}") for i in range(copies)]
    rows += [study(f"s{i}", i, "test", f"n{i}") for i in range(12, 15)]
    data = write_csv(root / f"{out.name}.csv", rows)
    options = WritingOptions(num_beams=1, max_length=4)
    model = load_report_model(root / "run")
    done = write_reports(read_studies(data).split("test"), model, options=options, out=out, pictures=0)
    return data, done.predictions, done.notes


def test_copies_are_told_by_generate_and_counted_by_evaluate(root, tmp_path):
    data, predictions, notes = generated(root, tmp_path / "few", 2)
    assert any("on 2 of these 5 radiographs (40%): 2 near duplicates; the first is" in note for note in notes)
    paths = {str(root / f"copy{number}.png") for number in range(2)}
    known = read_known_images(predictions.parent / KNOWN_FILE)
    assert known == {"pixels": set(), "near": {"copy0", "copy1"} | paths}
    renamed = data.with_name("renamed.csv")  # other ids of the same radiographs
    renamed.write_text(data.read_text().replace("copy0,", "other,", 1))
    assert overlap_with(load_report_model(root / "run").seen, read_studies(renamed).studies, "", "", known=known).by[
        "near"
    ].tolist() == [True, True, False, False, False]
    found = evaluate_reports(predictions, data=data, bootstraps=0, meteor=False)
    assert found.metrics["seen"] == {"studies": 2, "share": 0.4, "patients": 0, "pixels": 0, "near": 2}
    assert any("2 of these 5 studies (40%): 2 near duplicates; the first is row 2" in note for note in found.notes)


def test_a_study_without_a_frontal_chest_is_told_beside_its_report(root, tmp_path, monkeypatch, capsys):
    """By a note, in the table, on the terminal and on its picture; a lateral film beside a frontal one is none."""
    whole, drawn = radiographs.read_radiograph, []
    views = {"s12.png": "lateral", "s13.png": "lateral", "s14.png": "frontal"}
    read = lambda image, *rest: replace(whole(image, *rest), view=views[Path(image).name])  # noqa: E731
    monkeypatch.setattr(radiographs, "read_radiograph", read)
    monkeypatch.setattr(writing, "draw_attention", lambda path, *more: drawn.append(more[-1]))
    lines = ["id,image,report", f"a,{root / 's12.png'},clear", f"b,{root / 's13.png'};{root / 's14.png'},clear"]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    words = ["report", "generate", "--data", str(tmp_path / "d.csv"), "--split", "all", "--model", str(root / "run")]
    words += ["--out", str(tmp_path / "out"), "--workers", "0", "--max-length", "4", "--num-beams", "1"]
    assert main(words) == 0
    said = capsys.readouterr()
    told = f"1 of 3 shows no frontal chest, by header or pixels (1 lateral): {root / 's12.png'}; leave them out"
    assert f"note: {told}" in said.err
    assert "s12.png: shows no frontal chest (lateral)\n" in said.out and "s13.png, s14.png\n" in said.out
    assert drawn == [["shows no frontal chest (lateral)"], ["", ""]]
    with open(tmp_path / "out" / "predictions.csv", newline="") as stream:
        rows = [(row["view"], row["image"]) for row in csv.DictReader(stream)]
    assert rows == [("lateral", "s12.png"), ("lateral|frontal", "s13.png|s14.png")]
    page = (tmp_path / "out" / "reports.html").read_text()
    assert page.count('<p class="warning">shows no frontal chest (lateral)') == 1


def test_a_model_whose_reports_matched_nothing_is_warned_of_once(root, capsys):
    found = load_report_model(root / "run").validated
    assert (found.split, found.studies, round(found.bleu4, 2)) == ("val", 2, 0.0)
    command = ["report", "generate", str(root / "s14.png"), str(root / "s15.png"), "--model", str(root / "run")]
    assert main([*command, "--num-beams", "1", "--max-length", "4"]) == 0
    warning = "warning: this model's reports matched nothing of its validation reports (BLEU-4 0.00)"
    assert capsys.readouterr().err.count(warning) == 1


def test_most_of_them_are_refused(root, tmp_path):
    data, predictions, _ = generated(root, tmp_path / "most", 4)
    with pytest.raises(ConfigError, match=r"on 4 of these 7 studies \(57%\): 4 near duplicates; the first is row 2"):
        evaluate_reports(predictions, data=data, bootstraps=0, meteor=False)
    found = evaluate_reports(predictions, data=data, bootstraps=0, meteor=False, allow_training_patients=True)
    assert found.metrics["seen"]["near"] == 4
    (predictions.parent / KNOWN_FILE).write_text("study,image,known_by\na,b,c\n")
    with pytest.raises(ConfigError, match=r"known_images\.csv: is damaged"):
        evaluate_reports(predictions, data=data, bootstraps=0, meteor=False)
    (predictions.parent / KNOWN_FILE).unlink()
    found = evaluate_reports(predictions, data=data, bootstraps=0, meteor=False)
    assert any("radiographs are not: no known_images.csv" in note for note in found.notes)


@pytest.mark.parametrize("text", ["[1]", "{}", "", "study,image\n", "study,image,known_by\na\n", None])
def test_a_damaged_list_is_not_taken_for_an_empty_one(tmp_path, text):
    path = tmp_path / KNOWN_FILE
    if text is None:
        path.symlink_to(path.name)
    else:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"known_images\.csv: is damaged"):
        read_known_images(path)


def test_training_leaves_no_copies_across_a_drawn_split(root, tmp_path):
    """``c10`` is a copy of ``s10`` under another patient; the one that would be trained on goes."""
    rows = [study(f"s{i}", i, "train", f"p{i}") for i in range(10)]
    rows += [study("s10", 2, "val", "p10"), study("s11", 3, "val", "p11"), study("c10", 2, "train", "other")]
    rows.append(study("s12", 0, "test", "p12"))
    given = write_csv(root / "given.csv", rows)
    settings = {"weights": str(root / "encoder"), **QUICK}
    result = run_report_training(ReportConfig(data=str(given), out=str(tmp_path / "given"), **settings), progress=False)
    assert any(note.startswith("warning: 1 pair of near duplicates across splits") for note in result.notes)
    assert len(load_report_model(tmp_path / "given").seen.keys["pixels"]) == 13
    names = [f"s{i}" for i in range(11)]
    drawn = [{**study(name, 0, "", f"p{i}")} for i, name in enumerate(names)] + [study("c10", 2, "", "other")]
    for row in drawn:
        del row["split"]
    data = write_csv(root / "drawn.csv", drawn)
    for seed in range(200):  # one that parts them
        table = read_studies(data, val_share=0.4, test_share=0.1, split_seed=seed)
        place = {one.id: one.split for one in table.studies}
        if {place["s10"], place["c10"]} == {"train", "val"}:
            break
    settings |= {"val_share": 0.4, "test_share": 0.1, "split_seed": seed}
    result = run_report_training(ReportConfig(data=str(data), out=str(tmp_path / "drawn"), **settings), progress=False)
    assert any(note.startswith("1 image is left out of train or val") for note in result.notes)
    gone = "s10" if place["s10"] == "train" else "c10"
    used = [name for name, split in place.items() if split != "test" and name != gone]
    seen = load_report_model(tmp_path / "drawn").seen
    assert len(seen.keys["pixels"]) == len(seen.keys["near"]) == len(used)
