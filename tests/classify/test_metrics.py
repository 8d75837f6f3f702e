"""Metrics, of all cases and of draws, against scikit-learn called directly."""

from __future__ import annotations

import json

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.classify.metrics import (
    METRICS,
    best_threshold,
    calibration_by_chance,
    calibration_error,
    evaluate_predictions,
    format_metrics,
)
from hdxray_fast.classify.resampled import Resampled
from hdxray_fast.classify.selection import validation_score
from hdxray_fast.data import bootstrap
from hdxray_fast.data.bootstrap import bootstrap_counts

sklearn = pytest.importorskip("sklearn.metrics")


def cases(rng, n: int = 200, classes: int = 3, ties: bool = True):
    labels = (rng.random((n, classes)) < 0.3).astype(float)
    probabilities = rng.random((n, classes)) * 0.6 + labels * 0.3
    if ties:
        probabilities = probabilities.round(1)
    labels[rng.random((n, classes)) < 0.1] = np.nan
    patients = [f"p{i}" for i in rng.integers(0, n // 3, n)]
    return labels, probabilities.clip(0, 1), patients


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_values_are_those_of_scikit_learn(seed, ties):
    labels, probabilities, patients = cases(np.random.default_rng(seed), ties=ties)
    thresholds = [0.4, 0.5, 0.6]
    report = evaluate_predictions(labels, probabilities, ["a", "b", "c"], patients, thresholds, bootstraps=0)
    for column, name in enumerate("abc"):
        known = ~np.isnan(labels[:, column])
        truth, score = labels[known, column].astype(int), probabilities[known, column]
        decided = (score >= thresholds[column]).astype(int)
        expected = {
            "auroc": sklearn.roc_auc_score(truth, score),
            "auprc": sklearn.average_precision_score(truth, score),
            "f1": sklearn.f1_score(truth, decided),
            "balanced_accuracy": sklearn.balanced_accuracy_score(truth, decided),
        }
        row = report["classes"][name]
        for metric, value in expected.items():
            assert row[metric]["value"] == pytest.approx(value, abs=1e-9)
            assert row[metric]["low"] is None
        assert (row["positive"], row["negative"]) == (truth.sum(), (1 - truth).sum())
    values = [report["classes"][name]["auroc"]["value"] for name in "abc"]
    assert report["mean"]["auroc"]["value"] == pytest.approx(np.mean(values), abs=1e-12)
    json.dumps(report)


@pytest.mark.parametrize("ties", [False, True])
def test_draws_are_measured_as_scikit_learn_would(ties):
    rng = np.random.default_rng(7)
    labels, probabilities, patients = cases(rng, n=90, classes=1, ties=ties)
    known = ~np.isnan(labels[:, 0])
    truth, score = labels[known, 0].astype(int), probabilities[known, 0]
    counts = bootstrap_counts(patients, 200, 3)[:, known]
    drawn = Resampled(truth, score, 0.5).measure(counts)
    for draw, found in zip(counts, drawn, strict=True):  # every image written out as often as its patient was drawn
        rows = np.repeat(np.arange(len(truth)), draw)
        if truth[rows].min() == truth[rows].max():
            assert np.isnan(found).all()
            continue
        decided = (score[rows] >= 0.5).astype(int)
        assert found == pytest.approx(
            [
                sklearn.roc_auc_score(truth[rows], score[rows]),
                sklearn.average_precision_score(truth[rows], score[rows]),
                sklearn.f1_score(truth[rows], decided),
                sklearn.balanced_accuracy_score(truth[rows], decided),
            ],
            abs=1e-9,
        )
    assert np.isnan(Resampled(truth[:0], score[:0], 0.5).measure(counts[:2, :0])).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("whole", [False, True])
def test_weights_are_scikit_learns_sample_weights(seed, whole):
    rng = np.random.default_rng(seed)
    labels, probabilities, patients = cases(rng, n=120, classes=2)
    labels[:, 1] = np.where(np.isnan(labels[:, 1]), np.nan, 0)  # a class that is missing
    weights = rng.integers(0, 4, 120).astype(float) if whole else rng.random(120) * 3
    arguments = (labels, probabilities, ["a", "gone"], patients, [0.5, 0.5])
    report = evaluate_predictions(*arguments, bootstraps=50, seed=1, weights=weights)
    assert all(report["classes"]["gone"][metric] is None for metric in METRICS)
    known = ~np.isnan(labels[:, 0])
    truth, score, given = labels[known, 0].astype(int), probabilities[known, 0], weights[known]
    decided = (score >= 0.5).astype(int)
    row = report["classes"]["a"]
    for metric, value in {
        "auroc": sklearn.roc_auc_score(truth, score, sample_weight=given),
        "auprc": sklearn.average_precision_score(truth, score, sample_weight=given),
        "f1": sklearn.f1_score(truth, decided, sample_weight=given),
        "balanced_accuracy": sklearn.balanced_accuracy_score(truth, decided, sample_weight=given),
    }.items():
        assert row[metric]["value"] == pytest.approx(value, abs=1e-9)
    for counts in bootstrap_counts(patients, 20, 1):
        (drawn,) = Resampled(truth, score, 0.5).measure(given[None] * counts[known])
        assert drawn[0] == pytest.approx(sklearn.roc_auc_score(truth, score, sample_weight=given * counts[known]))
    if whole:  # a weight of 2 is the image twice
        rows = np.repeat(np.arange(120), weights.astype(int))
        again = evaluate_predictions(
            labels[rows], probabilities[rows], ["a", "gone"], [patients[i] for i in rows], [0.5, 0.5], bootstraps=0
        )
        for metric in METRICS:
            assert again["classes"]["a"][metric]["value"] == pytest.approx(row[metric]["value"], abs=1e-9)


def test_draws_take_whole_patients():
    patients = ["a", "b", "a", "c", "b"]
    counts = bootstrap_counts(patients, 500, 0)
    assert counts.shape == (500, 5)
    assert np.array_equal(counts[:, 0], counts[:, 2])
    assert np.array_equal(counts[:, 1], counts[:, 4])
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()
    assert counts[:, 0].mean() == pytest.approx(1, abs=0.15)
    assert np.array_equal(counts, bootstrap_counts(patients, 500, 0))


def test_a_class_without_positives_is_not_available():
    labels = np.array([[0, 1], [0, 0], [0, 1], [np.nan, 0]], float)
    probabilities = np.array([[0.1, 0.8], [0.2, 0.3], [0.3, 0.9], [0.4, 0.1]])
    report = evaluate_predictions(labels, probabilities, ["none", "all"], list("abcd"), [0.5, 0.5], bootstraps=20)
    assert all(report["classes"]["none"][metric] is None for metric in METRICS)
    assert report["classes"]["none"]["negative"] == 3
    assert report["mean"]["auroc"]["value"] == report["classes"]["all"]["auroc"]["value"] == 1
    text = format_metrics(report)
    assert "N/A" in text
    assert "1.000 (too few)" in text
    assert "the mean is over 1 class, without none" in text.splitlines()
    two = labels[:, [0, 0]], probabilities[:, [0, 0]], ["none", "nor"]
    empty = evaluate_predictions(*two, list("abcd"), [0.5, 0.5], bootstraps=20)
    assert empty["mean"]["auroc"] is None and "there is no mean: no class has images with" in format_metrics(empty)


def test_calibration_error_by_hand():
    truth, score = np.array([1, 0, 1, 1]), np.array([0.95, 0.94, 0.05, 1.0])
    # the last bin holds three: mean score .963, two of three positive; the first holds .05 and a positive
    expected = (abs(0.95 + 0.94 + 1.0 - 2) + abs(0.05 - 1)) / 4
    assert calibration_error(truth, score) == pytest.approx(expected)
    weights = np.array([2, 1, 0, 3])
    assert calibration_error(truth, score, weights) == pytest.approx(
        calibration_error(np.repeat(truth, weights), np.repeat(score, weights))
    )


def test_calibration_by_chance_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    score, weights = rng.random(60), rng.random(60)
    order = rng.permutation(60)
    found = calibration_by_chance(score, weights)
    assert found["low"] < found["value"] < found["high"]
    assert calibration_by_chance(score[order], weights[order]) == pytest.approx(found, rel=1e-12)


def test_scores_that_are_no_numbers_are_named_or_choose_nothing():
    labels = np.array([[1.0], [0.0], [1.0], [np.nan]], np.float32)
    with pytest.raises(hx.ArgumentError, match="probabilities: accepted are finite numbers from 0 to 1"):
        best_threshold(labels[:, 0], np.array([0.2, np.nan, 0.5, 0.5]))
    assert best_threshold(labels[:, 0], np.array([0.2, 0.1, 0.5, np.nan])) == 0.1 + 0.05  # of a label that is not known

    logits = np.array([[1.0], [np.inf], [2.0], [0.0]], np.float32)
    score = validation_score(labels, logits, False, "auroc")
    assert np.isnan(score["loss"]) and np.isnan(score["score"]) and score["auroc"] is score["auprc"] is None
    assert validation_score(labels, logits.clip(-5, -1), False, "auroc")["auroc"] == 0.5
    confident = np.array([[20.0], [19.0], [21.0], [0.0]], np.float32)  # all are 1 in float32: no ties
    assert validation_score(labels, confident, False, "auroc")["auroc"] == 1.0


def test_best_threshold_is_the_best_of_all():
    rng = np.random.default_rng(1)
    labels, probabilities, _ = cases(rng, classes=1)
    found = best_threshold(labels[:, 0], probabilities[:, 0])
    known = ~np.isnan(labels[:, 0])
    truth, score = labels[known, 0].astype(int), probabilities[known, 0]
    scores = [sklearn.f1_score(truth, (score >= threshold).astype(int)) for threshold in np.unique(score)]
    assert sklearn.f1_score(truth, (score >= found).astype(int)) == pytest.approx(max(scores))
    assert best_threshold(np.zeros(3), np.zeros(3)) == best_threshold(np.ones(3), np.full(3, 0.2)) == 0.5


def test_a_threshold_lies_between_images():
    """Noise of another batch size or device turns no decision about the images that it was chosen on."""
    truth = np.array([1.0, 0.0, 1.0, 0.0])
    assert best_threshold(truth, np.array([0.8, 0.3, 0.6, 0.4])) == pytest.approx(0.5)
    assert best_threshold(truth, np.array([0.9, 0.8, 0.2, 0.3])) == pytest.approx(0.1)  # all are called positive
    low = 1.0 - 2**-53
    assert best_threshold(truth, np.array([1.0, low, 1.0, low])) == 1.0
    assert best_threshold(truth, np.array([0.0, 0.0, 0.0, 0.0])) == 0.0


def test_bad_input_is_named():
    good = np.array([[0.0], [1.0]]), np.array([[0.1], [0.9]]), ["a"], ["x", "y"], [0.5]
    for position, value in ((1, np.zeros((3, 1))), (1, np.array([[0.1], [np.nan]])), (1, np.array([[0.1], [1.2]]))):
        arguments = list(good)
        arguments[position] = value
        with pytest.raises(hx.ArgumentError, match=r"^probabilities: "):
            evaluate_predictions(*arguments)
    for weights in ([1.0], [1.0, -1.0], [1.0, np.inf]):
        with pytest.raises(hx.ArgumentError, match=r"^weights: "):
            evaluate_predictions(*good, weights=weights)
    with pytest.raises(hx.ArgumentError, match=r"^patients: "):
        evaluate_predictions(good[0], good[1], ["a"], ["x"], [0.5])


def test_draws_are_kept_small_or_made_again(monkeypatch):
    patients = ["b", "a", "c", "a", "d"]
    whole = bootstrap_counts(patients, 50, 4)
    monkeypatch.setattr(bootstrap, "PART", 4 * 7)  # seven draws a part
    for held, kept in ((2**29, 200), (60, None)):
        monkeypatch.setattr(bootstrap, "HELD", held)
        draws = bootstrap.PatientDraws(patients, 50, 4)
        for _ in range(2):
            parts = list(draws.parts())
            assert [len(part) for part in parts] == [7] * 7 + [1]
            assert np.array_equal(np.concatenate(parts)[:, draws.member], whole)
        assert (None if draws._kept is None else sum(part.nbytes for part in draws._kept)) == kept
    assert len(bootstrap.PatientDraws([], 50, 4)) == 0 and not list(bootstrap.PatientDraws([], 50, 4).parts())
