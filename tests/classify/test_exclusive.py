"""Exclusive classes: every number is of the most probable class, and is scikit-learn's."""

from __future__ import annotations

import json

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.classify.calibration import calibration_error
from hdxray_fast.classify.metrics import evaluate_predictions, format_metrics
from hdxray_fast.data.bootstrap import bootstrap_counts

sklearn = pytest.importorskip("sklearn.metrics")

NAMES = ["normal", "effusion", "nodule", "mass"]


def cases(rng, n=150):
    truth = rng.choice(4, n, p=[0.6, 0.2, 0.15, 0.05])
    logits = rng.normal(size=(n, 4)) + np.eye(4)[truth] * 1.2
    odds = np.exp(logits)
    return truth, odds / odds.sum(1, keepdims=True), [f"p{i // 2}" for i in range(n)]


def evaluate(truth, probabilities, patients, **more):
    return evaluate_predictions(np.eye(4)[truth], probabilities, NAMES, patients, [], multiclass=True, **more)


@pytest.mark.parametrize("weighted", [False, True])
def test_decisions_are_scikit_learns(weighted):
    rng = np.random.default_rng(1)
    truth, probabilities, patients = cases(rng)
    weights = rng.random(len(truth)) if weighted else None
    report = evaluate(truth, probabilities, patients, bootstraps=0, weights=weights)
    decided, found, given = probabilities.argmax(1), report["decisions"], {"sample_weight": weights}
    expected = {
        "accuracy": sklearn.accuracy_score(truth, decided, **given),
        "macro_f1": sklearn.f1_score(truth, decided, average="macro", **given),
        "mean_recall": sklearn.balanced_accuracy_score(truth, decided, **given),
        "calibration_error": calibration_error(decided == truth, probabilities.max(1), weights),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12)
    np.testing.assert_allclose(found["confusion"], sklearn.confusion_matrix(truth, decided, **given), atol=1e-12)
    recalls = sklearn.recall_score(truth, decided, average=None, **given)
    for column, name in enumerate(NAMES):
        row = report["classes"][name]
        assert row["recall"]["value"] == pytest.approx(recalls[column], abs=1e-12)
        assert row["auroc"]["value"] == pytest.approx(
            sklearn.roc_auc_score(truth == column, probabilities[:, column], **given), abs=1e-12
        )
        assert not {"threshold", "balanced_accuracy", "calibration_error", "operating_points"} & set(row)
    assert report["mean"]["f1"] == found["macro_f1"]
    assert report["mean"]["recall"] == found["mean_recall"]
    json.dumps(report)


def test_a_model_that_always_says_the_same_has_no_skill():
    """One against the rest, thresholds of validation called it 0.5 of balanced accuracy: one of four is 0.25."""
    rng = np.random.default_rng(0)
    truth, _, patients = cases(rng)
    report = evaluate(truth, np.tile([0.6, 0.2, 0.15, 0.05], (150, 1)), patients, bootstraps=0)
    assert report["decisions"]["mean_recall"]["value"] == 0.25
    assert report["decisions"]["accuracy"]["value"] == (truth == 0).mean()


def test_intervals_are_over_draws_that_hold_every_class():
    truth, probabilities, patients = cases(np.random.default_rng(3), 60)
    report = evaluate(truth, probabilities, patients, bootstraps=200, seed=4)
    decided, accuracies, recalls = probabilities.argmax(1), [], []
    for draw in bootstrap_counts(patients, 200, 4):
        rows = np.repeat(np.arange(60), draw)
        accuracies.append(sklearn.accuracy_score(truth[rows], decided[rows]))
        if len(set(truth[rows])) == len(set(truth)):
            recalls.append(sklearn.balanced_accuracy_score(truth[rows], decided[rows]))
    assert len(recalls) < 200
    for name, drawn in (("accuracy", accuracies), ("mean_recall", recalls)):
        row = report["decisions"][name]
        assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))), abs=1e-12)


def test_a_class_that_the_images_lack_is_left_out_of_means():
    truth, probabilities, patients = cases(np.random.default_rng(2))
    truth = np.where(truth == 3, 0, truth)
    decided = probabilities.argmax(1)
    report = evaluate(truth, probabilities, patients, bootstraps=20)
    assert report["classes"]["mass"]["recall"] is report["classes"]["mass"]["f1"] is None
    expected = sklearn.f1_score(truth, decided, labels=[0, 1, 2], average="macro")
    assert report["decisions"]["macro_f1"]["value"] == pytest.approx(expected, abs=1e-12)
    text = format_metrics(report)
    assert "of the most probable class: accuracy" in text
    assert text.splitlines()[-4].split() == ["normal", *(str(int((decided[truth == 0] == k).sum())) for k in range(4))]


def test_prevalence_is_for_classes_with_a_threshold():
    truth, probabilities, patients = cases(np.random.default_rng(2))
    with pytest.raises(hx.ConfigError, match=r"^prevalence: "):
        evaluate(truth, probabilities, patients, prevalence=0.1)
