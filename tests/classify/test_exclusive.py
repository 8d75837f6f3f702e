"""Exclusive classes: every number is of the most probable class, and is scikit-learn's."""

from __future__ import annotations

import json

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.classify.calibration import calibration_error
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier
from hdxray_fast.classify.evaluation import evaluate_files
from hdxray_fast.classify.intervals import share_interval
from hdxray_fast.classify.metrics import evaluate_predictions, format_metrics

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


def test_intervals_of_decisions_are_of_shares_over_patients():
    truth, probabilities, patients = cases(np.random.default_rng(3), 240)
    report = evaluate(truth, probabilities, patients, bootstraps=200, seed=4)
    found, rows = report["decisions"], report["classes"]
    right, member = probabilities.argmax(1) == truth, np.unique(patients, return_inverse=True)[1]
    expected = share_interval(right, np.ones(240), member)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == pytest.approx(expected, abs=1e-12)
    for metric, mean in (("recall", "mean_recall"), ("f1", "macro_f1")):
        lengths = [row[metric]["high"] - row[metric]["low"] for row in rows.values()]
        assert 0.2 * max(lengths) < found[mean]["high"] - found[mean]["low"] < np.mean(lengths)
        assert found[mean]["low"] < found[mean]["value"] < found[mean]["high"]
    held = truth == 0
    expected = share_interval(right[held], np.ones(held.sum()), member[held])
    assert (rows[NAMES[0]]["recall"]["low"], rows[NAMES[0]]["recall"]["high"]) == pytest.approx(expected, abs=1e-12)
    assert found["calibration_error"]["low"] < found["calibration_error"]["high"]


def test_a_mean_over_a_class_with_too_few_patients_has_no_interval():
    truth, probabilities, patients = cases(np.random.default_rng(3), 60)
    assert 0 < len({patient for patient, number in zip(patients, truth, strict=True) if number == 3}) < 5
    report = evaluate(truth, probabilities, patients, bootstraps=200)
    assert report["classes"][NAMES[3]]["recall"]["low"] is None
    assert report["decisions"]["macro_f1"]["low"] is report["decisions"]["mean_recall"]["low"] is None
    assert report["decisions"]["accuracy"]["low"] is not None


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


def test_a_prevalence_of_exclusive_classes_is_refused_before_a_table_or_an_image_is_read(tmp_path):
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1, embed_dim=24, num_heads=3)
    save_classifier(Classifier(encoder, ClassifierConfig(NAMES, multiclass=True)), tmp_path / "model")
    with pytest.raises(hx.ConfigError, match=r"^prevalence: "):
        evaluate_files(tmp_path / "model", tmp_path / "none.csv", tmp_path / "out", prevalence=0.1, progress=False)
