"""Points of the ROC curve against scikit-learn's curve, predictive values against counts."""

from __future__ import annotations

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.classify.intervals import interval_of_draws
from hdxray_fast.classify.metrics import evaluate_predictions, format_metrics
from hdxray_fast.classify.operating_points import predictive_values, read_prevalence
from hdxray_fast.data.bootstrap import bootstrap_counts

sklearn = pytest.importorskip("sklearn.metrics")


def cases(seed, ties, n=160):
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.3).astype(int)
    score = (0.6 * rng.random(n) + 0.35 * truth).round(1 if ties else 9)
    return truth, score, [f"p{i // 3}" for i in range(n)]


def from_curve(truth, score, level, weights=None):
    false, true, _ = sklearn.roc_curve(truth, score, sample_weight=weights, drop_intermediate=False)
    return true[1 - false >= level - 1e-9].max(), (1 - false)[true >= level - 1e-9].max()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_points_are_those_of_scikit_learns_curve(seed, ties, weighted):
    truth, score, patients = cases(seed, ties)
    weights = np.random.default_rng(seed).random(len(truth)) if weighted else None
    arguments = (truth[:, None], score[:, None], ["edema"], patients, [0.5])
    report = evaluate_predictions(*arguments, bootstraps=0, weights=weights, prevalence="edema=0.02")
    points = report["classes"]["edema"]["operating_points"]
    for level in (0.9, 0.95):
        sensitivity, specificity = from_curve(truth, score, level, weights)
        assert points[f"sensitivity_at_specificity_{level:g}"]["value"] == pytest.approx(sensitivity, abs=1e-12)
        assert points[f"specificity_at_sensitivity_{level:g}"]["value"] == pytest.approx(specificity, abs=1e-12)
    decided = (score >= 0.5).astype(int)
    sensitivity = sklearn.recall_score(truth, decided, sample_weight=weights)
    specificity = sklearn.recall_score(truth, decided, pos_label=0, sample_weight=weights)
    assert points["sensitivity"]["value"] == pytest.approx(sensitivity, abs=1e-12)
    assert points["specificity"]["value"] == pytest.approx(specificity, abs=1e-12)

    # the same test set with as many ill as 2 % of it: precision there is the predictive value
    given = np.ones(len(truth)) if weights is None else weights
    clinic = np.where(truth == 1, given * 0.02 / given[truth == 1].sum(), given * 0.98 / given[truth == 0].sum())
    ppv = sklearn.precision_score(truth, decided, sample_weight=clinic)
    npv = sklearn.precision_score(1 - truth, 1 - decided, sample_weight=clinic)
    assert (points["ppv"]["value"], points["npv"]["value"]) == pytest.approx((ppv, npv), abs=1e-12)
    assert points["prevalence"] == 0.02


def test_intervals_at_a_level_rest_on_a_direct_bootstrap():
    truth, score, patients = cases(9, False, 90)
    report = evaluate_predictions(truth[:, None], score[:, None], ["a"], patients, [0.5], bootstraps=100, seed=2)
    drawn = [from_curve(truth, score, 0.9, counts)[0] for counts in bootstrap_counts(patients, 100, 2).astype(float)]
    units = report["classes"]["a"]["positive_patients"]
    assert units < report["classes"]["a"]["negative_patients"]
    found = report["classes"]["a"]["operating_points"]["sensitivity_at_specificity_0.9"]
    expected = interval_of_draws(found["value"], np.array(drawn), units, units)
    assert (found["low"], found["high"]) == pytest.approx(expected, abs=1e-12)
    assert "ppv" not in report["classes"]["a"]["operating_points"]


def test_predictive_values_are_as_uncertain_as_what_they_follow_from():
    truth = np.repeat([1, 0], [20, 200])
    score = np.where(truth == 1, np.arange(220) < 16, np.arange(220) < 0).astype(float)  # no false alarm
    report = evaluate_predictions(
        truth[:, None], score[:, None], ["a"], [str(i) for i in range(220)], [0.5], bootstraps=50, prevalence=0.01
    )
    points = report["classes"]["a"]["operating_points"]
    assert points["ppv"]["value"] == points["ppv"]["high"] == 1
    expected = predictive_values(0.8, points["specificity"]["low"], 0.01)[0]  # far from what 20 patients' draws show
    assert points["ppv"]["low"] == pytest.approx(expected, abs=0.02) and expected < 0.4
    assert 0.99 < points["npv"]["low"] < points["npv"]["value"] < points["npv"]["high"]


def test_prevalence_as_it_is_written():
    assert read_prevalence("5%", ["a"]) == {"a": 0.05}
    assert read_prevalence("a=0.5 %, b=0.1", ["a", "b"]) == {"a": 0.005, "b": 0.1}
    with pytest.raises(hx.ConfigError, match=r"such as 0\.05 or 5%, or one per class"):
        read_prevalence("5")
    assert read_prevalence("0.05", ["a", "b"]) == {"a": 0.05, "b": 0.05}
    assert read_prevalence(0.05, ["a"]) == {"a": 0.05}
    assert read_prevalence("a=0.05, b=0.2", ["a", "b", "c"]) == {"a": 0.05, "b": 0.2}
    assert read_prevalence(None, ["a"]) == {}
    for text, message in (("5", "got '5'"), ("a=x", "got 'a=x'"), ("0.1, 0.2", "got"), ("0", "got"), ("d=0.1", "'d'")):
        with pytest.raises(hx.ConfigError, match=f"^prevalence: .*{message}"):
            read_prevalence(text, ["a", "b"])


def test_what_nobody_is_called_has_no_predictive_value():
    truth, score, patients = cases(1, False)
    report = evaluate_predictions(
        np.stack([truth, truth * 0], 1), np.stack([score, score], 1), ["a", "none"], patients, [0.99, 0.5],
        bootstraps=0, prevalence="0.1",
    )  # fmt: skip
    points = report["classes"]["a"]["operating_points"]
    assert points["ppv"] is None
    assert points["npv"]["value"] == pytest.approx(0.9)
    assert report["classes"]["none"]["operating_points"]["sensitivity"] is None
    assert "prevalence: 0.1 (a), 0.1 (none)" in format_metrics(report)
