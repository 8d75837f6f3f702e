"""What chance makes of a calibration error, and the temperature against a search over all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.classify.calibration import (
    as_probabilities,
    calibration_by_chance,
    calibration_error,
    describe_temperature,
    fit_temperature,
    reliability,
    temperature_report,
)
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier
from hdxray_fast.classify.metrics import evaluate_predictions

sklearn = pytest.importorskip("sklearn.metrics")


def test_a_perfect_model_lies_within_what_chance_shows():
    """Labels drawn from the scores: the error is far from 0, and 95 % of the time within the interval beside it."""
    rng = np.random.default_rng(0)
    inside, errors = 0, []
    for trial in range(100):
        score = rng.random(120)
        errors.append(calibration_error(rng.random(120) < score, score))
        chance = calibration_by_chance(score, seed=trial)
        inside += chance["low"] <= errors[-1] <= chance["high"]
    assert np.mean(errors) > 0.08
    assert inside >= 88
    assert chance["value"] == pytest.approx(np.mean(errors), abs=0.01)
    off = rng.random(2000)
    assert calibration_error(rng.random(2000) < off**3, off) > 3 * calibration_by_chance(off)["high"]


def test_reports_have_it_beside_the_error():
    rng = np.random.default_rng(1)
    score = rng.random((300, 2))
    labels = (rng.random((300, 2)) < score).astype(float)
    labels[:, 1] = 0
    report = evaluate_predictions(labels, score, ["a", "none"], [str(i) for i in range(300)], [0.5, 0.5], bootstraps=0)
    expected = calibration_by_chance(score[:, 0])
    assert report["classes"]["a"]["calibration_by_chance"] == expected
    assert report["classes"]["none"]["calibration_by_chance"] is None


@pytest.mark.parametrize("multiclass", [False, True])
@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(multiclass, true):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4000, 3)) * 2
    honest = as_probabilities(logits / true, multiclass)
    if multiclass:
        labels = np.eye(3)[(rng.random((4000, 1)) > honest.cumsum(1)).sum(1).clip(0, 2)]
    else:
        labels = (rng.random((4000, 3)) < honest).astype(float)
        labels[rng.random((4000, 3)) < 0.1] = np.nan
    found = fit_temperature(logits, labels, multiclass)
    assert found.value == pytest.approx(true, rel=0.1)
    before = reliability(labels, as_probabilities(logits, multiclass), multiclass)
    after = reliability(labels, as_probabilities(logits / found.value, multiclass), multiclass)
    assert after["log_loss"] <= before["log_loss"] + 1e-5
    if multiclass:
        expected = sklearn.log_loss(labels.argmax(1), as_probabilities(logits, True), labels=[0, 1, 2])
    else:
        known = ~np.isnan(labels)
        expected = sklearn.log_loss(labels[known], as_probabilities(logits, False)[known])
    assert before["log_loss"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("multiclass", [False, True])
def test_no_other_temperature_has_less_loss(multiclass):
    """Against a search over all of them, of the loss as scikit-learn computes it, with Platt's targets as weights."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 2)) * 3
    labels = np.eye(2)[rng.integers(0, 2, 60)] if multiclass else rng.integers(0, 2, (60, 2)).astype(float)
    found = fit_temperature(logits, labels, multiclass).value

    def loss(temperature):
        scores = as_probabilities(logits / temperature, multiclass)
        total = 0.0
        hold = labels == 1
        positive, negative = (60, 60) if multiclass else (hold.sum(), (~hold).sum())
        for column in range(1 if multiclass else 2):  # two exclusive classes say one thing twice
            target = np.where(hold[:, column], (positive + 1) / (positive + 2), 1 / (negative + 2))
            total += sklearn.log_loss(
                np.repeat([1, 0], 60), np.tile(scores[:, column], 2), sample_weight=np.append(target, 1 - target)
            )
        return total

    grid = np.geomspace(0.1, 10, 801)
    assert found == pytest.approx(grid[np.argmin([loss(t) for t in grid])], rel=0.01)


def test_few_labels_or_none_change_nothing():
    logits = np.linspace(-3, 3, 40)[:, None]
    labels = (logits > 2.5).astype(float)
    found = fit_temperature(logits, labels)
    assert found.value == 1 and found.reason.endswith("10 are needed")
    told = temperature_report(found, {"test": (labels, logits)})
    assert told["test"]["before"] == told["test"]["after"]
    assert "not fitted" in describe_temperature(told) and describe_temperature(None) == ""
    told = temperature_report(fit_temperature(logits, (logits > 0) * 1.0), {"test": (labels, logits)})
    assert f"calibration error {told['test']['before']['calibration_error']:.3f} before" in describe_temperature(told)
    assert fit_temperature(logits, labels * np.nan).value == 1
    assert reliability(labels * np.nan, labels) == {"log_loss": None, "calibration_error": None}
    apart = fit_temperature(logits, (logits > 0).astype(float))  # without an error: not certain all the same
    assert 0.2 < apart.value < 1
    assert "end of what is searched" not in describe_temperature(told)
    told = temperature_report(fit_temperature(logits / 100, (logits > 0) * 1.0), {"test": (labels, logits / 100)})
    assert told["value"] == pytest.approx(0.1)
    assert "0.1 (the end of what is searched, 0.1 to 10)" in describe_temperature(told)


@pytest.mark.parametrize("head", ["linear", "attention", "label-query", "probe"])
def test_the_temperature_is_part_of_the_model(tmp_path, head):
    """Saved and loaded, every head gives the divided logits: no reader of the folder has to know of it."""
    torch.manual_seed(0)
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1, embed_dim=24, num_heads=3)
    model = Classifier(encoder, ClassifierConfig(["mass", "edema"], head=head)).eval()
    with torch.no_grad():
        model.head.fc.weight.normal_()
        images = torch.randn(2, 1, 64, 64)
        before = model(images, scale=1.0, shift=0.0)
        model.scale_logits(1.7)
        after = load_classifier(save_classifier(model, tmp_path / "model"))
        torch.testing.assert_close(after(images, scale=1.0, shift=0.0), before / 1.7)
    assert after.config.temperature == 1.7
