"""``predictions.csv`` holds what metrics are of: every digit, and whose image it is."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.classify.prediction_files import read_answers
from hdxray_fast.classify.predictions import Predictions, called_present, report_predictions, write_predictions

sklearn = pytest.importorskip("sklearn.metrics")
pytest.importorskip("matplotlib")


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_come_back_bit_for_bit(tmp_path, dtype):
    """Scores of a rare finding lie close together: six decimals made 174 numbers of 3,000."""
    rng = np.random.default_rng(0)
    labels = (rng.random((3000, 1)) < 0.02).astype(np.float32)
    scores = (1e-4 * rng.random((3000, 1)) * (1 + labels)).astype(dtype)
    patients = [f"p{i // 2}" for i in range(3000)]
    table = LabelTable([f"{i}.png" for i in range(3000)], labels, ["rare"], patients, ["test"] * 3000)
    report = report_predictions(tmp_path, table, scores, [0.5], bootstraps=0)
    rows = read(tmp_path / "predictions.csv")
    found = np.array([row["rare"] for row in rows], dtype)
    np.testing.assert_array_equal(found, scores[:, 0])
    assert [row["patient"] for row in rows] == patients
    truth = [int(row["label rare"]) for row in rows]
    assert sklearn.roc_auc_score(truth, found) == pytest.approx(report["classes"]["rare"]["auroc"]["value"], abs=1e-12)


def test_without_patients_there_is_no_column(tmp_path):
    found = Predictions(["a.png", "b.png"], np.float32([[0.25], [1e-9]]), ["mass"], [0.2], present=[["mass"], []])
    write_predictions(tmp_path / "plain.csv", found)
    assert (
        tmp_path / "plain.csv"
    ).read_text() == "image,mass,present,threshold mass\na.png,0.25,mass,0.2\nb.png,1e-09,,0.2\n"


def test_exclusive_classes_with_a_bar_in_their_names_are_read_as_they_were_called(tmp_path):
    classes, scores = ["normal", "COPD|emphysema", "effusion"], np.eye(3) * 0.6 + 0.1
    present = called_present(scores, classes, [], multiclass=True)
    images = ["a.png", "b.png", "c.png"]
    found = Predictions(images, scores, classes, [], present=present, multiclass=True)
    write_predictions(tmp_path / "predictions.csv", found)
    np.testing.assert_array_equal(read_answers(tmp_path / "predictions.csv").called, np.eye(3, dtype=bool))
