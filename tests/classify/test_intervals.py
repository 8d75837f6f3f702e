"""Intervals by hand, what images of one patient are worth, and how few cases are told."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hdxray_fast.classify.delong import delong_error, delong_parts
from hdxray_fast.classify.interval_text import interval_text, legend
from hdxray_fast.classify.intervals import (
    ClassIntervals,
    Gaps,
    interval_of_draws,
    mean_interval,
    t_quantile,
    wilson,
    worth_of,
)
from hdxray_fast.classify.metrics import METRICS, evaluate_predictions, format_metrics
from hdxray_fast.data.bootstrap import PatientDraws

pytest.importorskip("sklearn")


def cases(rng, positive: int, negative: int, apart: float = 1.2):
    """A film of each patient, with its truth and probability."""
    truth = np.repeat([1, 0], [positive, negative])
    return truth, 1 / (1 + np.exp(-apart * (truth - 0.5) - rng.normal(size=len(truth))))


def test_wilson_and_newcombe_by_hand():
    assert wilson(0.8, 10, 1.959964) == pytest.approx((0.49016, 0.94330), abs=1e-4)  # 8 of 10
    assert wilson(1.0, 10, 1.959964) == pytest.approx((0.72247, 1.0), abs=1e-4)
    assert t_quantile(10) == pytest.approx(2.262157, abs=1e-5)
    low, high = mean_interval([0.7, 0.9], [(0.6, 0.8), (0.8, 0.95)], np.zeros((2, 0)))
    assert (low, high) == pytest.approx((0.8 - 0.02**0.5 / 2, 0.8 + 0.0125**0.5 / 2))
    drawn = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])  # of one mind: distances add up
    assert mean_interval([0.7, 0.9], [(0.6, 0.8), (0.8, 0.95)], drawn) == pytest.approx((0.7, 0.875))
    assert mean_interval([0.7], [(0.6, 0.75)], drawn[:1]) == pytest.approx((0.6, 0.75))


def test_all_right_is_no_certainty():
    truth = np.repeat([1, 0], 10)
    found = ClassIntervals(truth, truth * 0.8 + 0.1, truth == 1, np.arange(20))
    for name in ("auroc", "sensitivity", "specificity", "balanced_accuracy", "f1"):
        low, high = getattr(found, name)()
        assert 0.6 < low < 0.9 and high == 1, name
    low, high = found.of("auprc", 1.0, np.ones(100))
    assert 0.8 < low < 0.95 and high == 1
    assert found.of("auprc", 1.0, np.full(100, np.nan)) is None


def test_a_patients_copies_add_nothing():
    """What is not more patients is no more certain; other patients are."""
    truth, score = cases(np.random.default_rng(3), 12, 30)
    once = ClassIntervals(truth, score, score >= 0.5, np.arange(42))
    three = np.tile(np.arange(42), 3)
    copies = ClassIntervals(truth[three], score[three], score[three] >= 0.5, three)
    others = ClassIntervals(truth[three], score[three], score[three] >= 0.5, np.arange(126))
    for name in ("auroc", "sensitivity", "specificity", "f1", "balanced_accuracy"):
        (low, high), again, more = (getattr(found, name)() for found in (once, copies, others))
        assert again == pytest.approx((low, high), abs=0.005), name
        assert more[1] - more[0] < 0.75 * (high - low), name
    assert worth_of(score[three], np.ones(126), three) == pytest.approx(42)
    assert worth_of(score, np.ones(42), np.arange(42)) == pytest.approx(42)


def test_auroc_of_many_is_delongs():
    truth, score = cases(np.random.default_rng(0), 3000, 5000)
    low, high = ClassIntervals(truth, score, score >= 0.5, np.arange(8000)).auroc()
    parts = delong_parts(truth, score)
    reach = 1.96 * delong_error(truth, parts, np.arange(8000))
    value = parts[truth == 1].mean()
    assert (low, high) == pytest.approx((value - reach, value + reach), abs=0.1 * reach)
    turned = ClassIntervals(truth, 1 - score, score >= 0.5, np.arange(8000)).auroc()
    assert turned == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_weights_are_images_written_out():
    rng = np.random.default_rng(1)
    truth, score = cases(rng, 20, 40)
    score, weights = score.round(1), rng.integers(0, 4, 60)
    rows, kept = np.repeat(np.arange(60), weights), weights > 0
    parts = delong_parts(truth[kept], score[kept], weights[kept].astype(float))
    written = delong_parts(truth[rows], score[rows])
    assert np.repeat(parts, weights[kept]) == pytest.approx(written)
    error = delong_error(truth[kept], parts, np.flatnonzero(kept), weights[kept].astype(float))
    assert error == pytest.approx(delong_error(truth[rows], written, rows))
    found = ClassIntervals(truth, score, score >= 0.5, np.arange(60), weights)
    assert found.support.positive_patients == (weights[:20] > 0).sum()
    assert found.auroc() == pytest.approx(ClassIntervals(truth[rows], score[rows], score[rows] > 1, rows).auroc(), 0.02)


def test_draws_count_as_the_share_they_move_like():
    rng = np.random.default_rng(0)
    drawn = rng.binomial(50, 0.7, 20000) / 50
    assert interval_of_draws(0.7, drawn, 10**6, 1000) == pytest.approx(wilson(0.7, 50, 1.96), abs=0.005)
    assert interval_of_draws(0.7, drawn, 10**6, 20) == pytest.approx(wilson(0.7, 20, 1.96), abs=0.005)
    assert interval_of_draws(0.7, drawn[:1], 10, 20) is None


def test_the_calibration_error_loses_what_chance_adds():
    rng = np.random.default_rng(0)
    score = rng.random(400)
    draws = PatientDraws([f"{number:03d}" for number in range(400)], 300, 0)
    bins, member = np.minimum((score * 15).astype(int), 14), draws.member
    for wrong in (0.0, 0.2):
        truth = (rng.random(400) < score * (1 - wrong)).astype(int)
        gaps = Gaps.of(bins, score, truth, np.ones(400), member, draws, 15)
        low, high = gaps.interval()
        observed = np.abs(gaps.observed).sum()
        true = wrong * score.mean()
        assert low <= true <= high and low < observed <= high
        assert (low == 0) == (wrong == 0)
        assert Gaps.mean([gaps]).interval() == (low, high)
        half = Gaps.mean([gaps, Gaps(np.zeros(15), np.zeros((300, 15)))])
        assert np.abs(half.observed).sum() == pytest.approx(observed / 2)
    assert Gaps(np.ones(2), np.zeros((0, 2))).interval() is None
    opposite = Gaps(np.array([0.1, -0.1]), rng.normal(0, 0.01, (300, 2)))  # the mean gap bounds it from above alone
    assert opposite.interval() == pytest.approx((0.17, 0.23), abs=0.01)


@pytest.mark.parametrize("count", [10, 18, 30, 100])
@pytest.mark.parametrize(
    ("scores", "rates"),
    [((0.5,), (0.6,)), ((0.97,), (0.9,)), ((0.2, 0.8), (0.3, 0.9)), ((0.05, 0.95), (0.05, 0.95)),
     ((0.01, 0.08, 0.15, 0.9, 0.97), (0.01, 0.08, 0.15, 0.9, 0.97))],
)  # fmt: skip
def test_the_calibration_error_of_few_cases_in_few_bins(scores, rates, count):
    """Before, no gap in the sample was no doubt, and neither was a bin of cases that are all alike: 0.78 and 0.29."""
    rng, draws = np.random.default_rng(1), PatientDraws([f"{number:03d}" for number in range(count)], 100, 0)
    scores, rates = np.array(scores), np.array(rates)
    true, held = np.abs(scores - rates).mean(), 0
    for _ in range(60):
        where = rng.integers(0, len(scores), count)
        score, truth = scores[where], (rng.random(count) < rates[where]).astype(int)
        bins = np.minimum((score * 15).astype(int), 14)
        low, high = Gaps.of(bins, score, truth, np.ones(count), draws.member, draws, 15).interval()
        held += low <= true <= high
    assert held >= 0.9 * 60  # 0.93 is known to 0.03 of so few


def test_an_interval_holds_its_value():
    """Before, the low end beside a 0 was 3e-17."""
    labels, scores = np.repeat([[1.0], [0.0]], 8, axis=0), np.repeat([[0.1], [0.9]], 8, axis=0)
    found = evaluate_predictions(labels, scores, ["wrong"], [f"p{i}" for i in range(16)], [0.5], 50)["classes"]["wrong"]
    told = [value for value in {**found, **found["operating_points"]}.values() if isinstance(value, dict)]
    told = [value for value in told if "low" in value and value is not found["calibration_by_chance"]]
    assert len(told) > 8 and all(value["low"] <= value["value"] <= value["high"] for value in told)
    assert found["operating_points"]["specificity_at_sensitivity_0.9"]["low"] == 0


@pytest.fixture
def report():
    """Classes with one, seven and twenty positive patients."""
    rng = np.random.default_rng(0)
    labels = np.zeros((60, 3))
    for column, count in enumerate((1, 7, 20)):
        labels[rng.permutation(60)[:count], column] = 1
    scores = (0.3 * labels + 0.7 * rng.random((60, 3))).clip(0, 1)
    return evaluate_predictions(
        labels, scores, ["one", "seven", "twenty"], [f"p{i}" for i in range(60)], [0.5] * 3, 300
    )


def test_few_cases_are_marked_and_too_few_have_no_interval(report):
    """Before, one positive patient had `0.970 (0.945-0.990)`."""
    rows = report["classes"]
    assert [rows[name]["few"] for name in rows] == ["too few", "few", ""]
    assert [rows[name]["positive_patients"] for name in rows] == [1, 7, 20]
    assert all(rows["one"][metric]["low"] is rows["one"][metric]["high"] is None for metric in METRICS)
    assert all(rows[name][metric]["low"] is not None for name in ("seven", "twenty") for metric in METRICS)
    text = format_metrics(report).splitlines()
    assert text[1].count("(too few)") == len(METRICS) and text[2].count(")*") == len(METRICS)
    assert "*" not in text[3] and "*" not in text[4]
    assert legend("0.5 (0.4-0.6)* 0.5 (too few)")[0] in text and legend("0.5 (0.4-0.6)") == []
    assert legend("0.5 (too few)") == ["too few: fewer than 5 patients with the finding or without it, no interval"]
    assert legend("0.5 (0.4-0.6)*") == ["*: fewer than 10 patients with the finding or without it"]
    assert interval_text({"value": 0.5, "low": None, "high": None}, "few") == "0.500"


def test_a_mean_is_over_classes_with_enough_in_draws_with_all_of_them(report):
    """Before, a draw without the rare class was the mean of the others."""
    rows, over = report["classes"], report["mean_over"]
    assert over["classes"] == ["seven", "twenty"] and over["left_out"] == ["one"] and over["few"] == ""
    assert 290 <= over["draws"] <= 300
    for metric in METRICS:
        mean = report["mean"][metric]
        assert mean["value"] == pytest.approx((rows["seven"][metric]["value"] + rows["twenty"][metric]["value"]) / 2)
        lengths = [rows[name][metric]["high"] - rows[name][metric]["low"] for name in ("seven", "twenty")]
        assert 0.4 * max(lengths) < mean["high"] - mean["low"] < max(lengths), metric
    text = format_metrics(report)
    assert "the mean is over 2 classes, without one" in text
    assert f"the {over['draws']} of 300 draws that define all its classes" in text
    json.dumps(report)


def test_without_draws_there_are_no_intervals():
    truth, score = cases(np.random.default_rng(0), 20, 20)
    report = evaluate_predictions(truth[:, None], score[:, None], ["a"], [str(i) for i in range(40)], [0.5], 0)
    assert all(row[metric]["low"] is None for row in (report["mean"], report["classes"]["a"]) for metric in METRICS)
    assert report["mean_over"] == {"classes": ["a"], "left_out": [], "draws": 0, "few": ""}
    assert "too few" not in format_metrics(report)


@pytest.mark.parametrize(("count", "few", "cell"), [(3, "too few", "(too few)"), (6, "few", ")*"), (12, "", ")")])
def test_a_mean_is_marked_if_all_of_its_classes_are(count, few, cell):
    truth, score = cases(np.random.default_rng(0), count, 30)
    patients = [str(number) for number in range(len(truth))]
    report = evaluate_predictions(truth[:, None], score[:, None], ["a"], patients, [0.5], 100)
    assert report["mean_over"]["few"] == few
    assert report["mean"]["auroc"] == pytest.approx(report["classes"]["a"]["auroc"])
    text = format_metrics(report).splitlines()
    assert cell in text[1]
    assert not any(line.startswith("mean") for line in text)  # of one class it would be that line again
