"""Tables of ``predict``: what they say of each film, and what of an earlier call they may replace."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.classify import scoring
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier
from hdxray_fast.classify.earlier_results import refuse_other_evaluation, refuse_other_predictions
from hdxray_fast.classify.evaluation import predict_files
from hdxray_fast.classify.prediction_files import read_answers
from hdxray_fast.classify.predictions import Predictions, write_predictions
from hdxray_fast.cli.main import main

for package in ("jsonargparse", "loky", "openpyxl", "pandas", "pebble", "pyarrow", "safetensors"):
    pytest.importorskip(package)


def classifier(**settings) -> Classifier:
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1, embed_dim=24, num_heads=3)
    own = {"thresholds": [0.0, 1.0], "contour": "rectangle", **settings}
    return Classifier(encoder, ClassifierConfig(["mass", "edema"], **own)).eval()


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def lateral(monkeypatch):
    """The second film of every call is a lateral one."""
    given = scoring.Scorer.predictions

    def predictions(self, rows):
        found = given(self, rows)
        found.views = ["lateral" if number == 1 else "" for number in range(len(found.images))]
        return found

    monkeypatch.setattr(scoring.Scorer, "predictions", predictions)


def test_a_film_without_a_frontal_chest_is_marked_or_left_out(radiographs, tmp_path, lateral, capsys):
    save_classifier(classifier(), tmp_path / "model")
    films = [str(radiographs / f"{number}.png") for number in range(3)]
    words = ["predict", *films, "--model", str(tmp_path / "model"), "--workers", "0"]
    assert main(words) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[2].startswith(films[1]) and lines[2].endswith("NO FRONTAL CHEST (lateral)") and "*" not in lines[2]
    assert all("*" in lines[row] for row in (1, 3)) and "nothing is called present" in said.out
    assert "1 of 3 shows no frontal chest" in said.err and "--view frontal leaves them out" in said.err
    out, aside = tmp_path / "new.csv", tmp_path / "new.left_out.csv"
    assert main([*words, "--out", str(out)]) == 0
    rows = rows_of(out)
    assert [row["present"] for row in rows] == ["mass", "shows no frontal chest (lateral)", "mass"]
    assert {(row["threshold mass"], row["threshold edema"]) for row in rows} == {("0.0", "1.0")}
    assert len({row["model"] for row in rows}) == 1 and not aside.exists()
    assert read_answers(out).called.tolist() == [[True, False]] * 3  # what the thresholds say
    assert read_answers(out).classes == ["mass", "edema"]
    capsys.readouterr()
    assert main([*words, "--out", str(out), "--view", "frontal"]) == 0
    assert f"left out (--view frontal) and listed in {aside}" in capsys.readouterr().err
    assert [row["image"] for row in rows_of(out)] == [films[0], films[2]]
    assert [row["path"] for row in rows_of(aside)] == [films[1]]
    assert main([*words, "--view", "frontal"]) == 0
    assert f"left out: {films[1]}: shows no frontal chest (lateral)" in capsys.readouterr().err
    assert main([*words, "--out", str(out)]) == 0 and not aside.exists()  # the list of another call
    found = hx.predict(films, tmp_path / "model", view="frontal")
    assert found.images == [films[0], films[2]] and found.probabilities.shape == (2, 2)
    assert found.left_out == {films[1]: "lateral"} and len(found.thumbnails) == len(found.hashes) == 2
    with pytest.raises(hx.ConfigError, match="view: got 'side', accepted are any and frontal"):
        hx.predict(films, tmp_path / "model", view="side")


@pytest.mark.parametrize("kind", ["csv", "xlsx", "json", "parquet"])
def test_a_table_of_other_films_or_another_model_stays_unless_forced(radiographs, tmp_path, kind, capsys):
    first, second = classifier(), classifier()
    with torch.no_grad():
        second.head.fc.bias += 1
    films, out = [radiographs / "0.png", radiographs / "1.png"], tmp_path / f"new.{kind}"
    predict_files(films[:1], first, out)
    predict_files(films, first, out)  # one more
    kept = out.read_bytes()
    for names, model, reason in (
        (films[:1], first, "has predictions of 1 other film: .*1.png"),
        (films, second, "has predictions of another model"),
    ):
        with pytest.raises(hx.ConfigError, match=rf"out: .*new.{kind} would be written over, and {reason}; .*--force"):
            predict_files(names, model, out)
    with pytest.raises(hx.ConfigError, match=r"and is of other classes \(edema\)"):
        predict_files(films, first, out, classes=["mass"])
    assert out.read_bytes() == kept
    predict_files(films[:1], second, out, force=True)
    assert len(out.read_bytes()) != len(kept)
    found = Predictions([str(films[0])], np.float32([[0.5, 0.5]]), ["mass", "edema"], [0, 1], present=[[]])
    write_predictions(out, found)
    with pytest.raises(hx.ConfigError, match="does not say which model it is of"):
        predict_files(films[:1], second, out)
    save_classifier(second, tmp_path / "model")
    assert main(["predict", str(films[0]), "--model", str(tmp_path / "model"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.strip().endswith("give another file, or --force to replace it")


def test_a_table_that_a_spreadsheet_saved_is_known_again(radiographs, tmp_path):
    film, out = radiographs / "0.png", tmp_path / "new.csv"
    predict_files(film, classifier(), out)
    out.write_text("\ufeff" + out.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(hx.ConfigError, match="has predictions of another model"):
        predict_files(film, classifier(), out)


def test_a_csv_that_excel_shows_wrongly_is_told(radiographs, tmp_path, capsys):
    save_classifier(classifier(), tmp_path / "model")
    film = (radiographs / "0.png").rename(radiographs / "Müller.png")
    words = ["predict", str(film), "--model", str(tmp_path / "model"), "--workers", "0", "--out"]
    for name, told in {"new.csv": True, "new.xlsx": False}.items():
        assert main([*words, str(tmp_path / name)]) == 0
        way_out = f"Excel shows letters such as ü wrongly: --out {tmp_path / 'new.xlsx'} writes"
        assert (way_out in " ".join(capsys.readouterr().err.split())) == told
    assert (tmp_path / "new.csv").read_bytes().startswith(b"image,")  # without a mark, which csv.DictReader keeps
    assert main([*words[:1], str(radiographs / "1.png"), *words[2:], str(tmp_path / "plain.csv")]) == 0
    assert "Excel" not in capsys.readouterr().err


def test_what_is_no_table_is_told_in_plain_words(radiographs, tmp_path):
    (tmp_path / "new.parquet").write_bytes(b"somebody's notes" * 4)
    with pytest.raises(hx.ConfigError, match=r"cannot be read .*\(it is no Parquet file, or is damaged\)"):
        predict_files(radiographs / "0.png", classifier(), tmp_path / "new.parquet")


def test_an_evaluation_of_something_else_stays_unless_forced(tmp_path):
    now = {"model_print": "a", "data": str(tmp_path / "labels.csv"), "split": "test"}
    refuse_other_evaluation(tmp_path, now)
    (tmp_path / "metrics.json").write_text(json.dumps({**now, "data": str(tmp_path / "labels.csv")}))
    refuse_other_evaluation(tmp_path, now)
    refuse_other_evaluation(tmp_path, {**now, "split": "Testing"})  # another word for it
    for name, words in (
        ("model_print", "of another model"),
        ("split", "with split=test, not b"),
        ("data", "with data="),
    ):
        with pytest.raises(hx.ConfigError, match=rf"out: .* holds an evaluation {words}.* or --force"):
            refuse_other_evaluation(tmp_path, {**now, name: "b"})
        refuse_other_evaluation(tmp_path, {**now, name: "b"}, force=True)


def test_of_exclusive_classes_one_holds_whatever_the_film_shows(tmp_path):
    """And a table of fewer classes does not take their place."""
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], np.float32)
    names, films, path = ["a", "b", "c"], [str(tmp_path / "0.png"), str(tmp_path / "1.png")], tmp_path / "new.csv"
    found = Predictions(
        films, probabilities, names, [0.5] * 3, present=[["a"], ["c"]], views=["lateral", ""], multiclass=True
    )
    write_predictions(path, found)
    assert [row["present"] for row in rows_of(path)] == ["shows no frontal chest (lateral)", "c"]
    assert read_answers(path).called.tolist() == [[True, False, False], [False, False, True]]
    refuse_other_predictions(path, films, names, "")
    write_predictions(tmp_path / "two.csv", replace(found, classes=names[1:], probabilities=probabilities[:, 1:]))
    assert read_answers(tmp_path / "two.csv").called.tolist() == [[False, False], [False, True]]
    with pytest.raises(hx.ConfigError, match=r"is of other classes \(c\)"):
        refuse_other_predictions(path, films, names[:2], "")


def test_what_is_no_path_is_named():
    for images in (np.zeros((8, 8), np.uint8), [3], 3):
        with pytest.raises(hx.ArgumentTypeError, match=r"^paths: got \w+, accepted are paths .*takes tensors"):
            hx.predict(images, Classifier(hx.create_encoder("vit_tiny_patch16", img_size=32), ClassifierConfig(["a"])))
