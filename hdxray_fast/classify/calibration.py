"""Whether probabilities are frequencies: calibration error, what chance alone makes of it, and temperature scaling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CALIBRATION_BINS = 15  # equal widths, as Guo et al., https://arxiv.org/abs/1706.04599
CHANCE_DRAWS = 200
LEAST_LABELS = 10  # positive and negative ones, below which no temperature is fitted
COLDEST, HOTTEST = 0.1, 10.0
AT_BOUND = 1e-3  # share by which a temperature may differ from an end of the search that it stopped at


def calibration_error(truth: np.ndarray, score: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
    """Expected calibration error over bins of equal width: mean gap between predicted and observed frequency."""
    weights = np.ones(len(truth)) if sample_weight is None else sample_weight
    gaps = np.bincount(calibration_bins(score), weights * (score - truth), CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def calibration_bins(score: np.ndarray) -> np.ndarray:
    """The bin of each probability ``[N]``."""
    return np.minimum((score * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)


def calibration_by_chance(
    score: np.ndarray, sample_weight: np.ndarray | None = None, draws: int = CHANCE_DRAWS, seed: int = 0
) -> dict:
    """The calibration error that perfect probabilities would show on these cases: labels are drawn from the scores.

    A gap of chance is a gap, so that the error of a perfect model is never 0 on finitely many cases; only what lies
    above ``high`` tells of the model. Images are drawn one by one, as if none were of the same patient.

    Args:
        score: ``[N]`` in [0, 1].
        sample_weight: ``[N]``; left out, all equal.
        draws: simulated test sets.
        seed: of the draws.

    Returns:
        ``{"value", "low", "high"}``: mean, and the middle 95 % of the draws.
    """
    order = np.argsort(score, kind="stable")  # the draws are the same however the table is sorted
    score, sample_weight = score[order], None if sample_weight is None else sample_weight[order]
    rng = np.random.default_rng(seed)
    errors = [calibration_error(rng.random(len(score)) < score, score, sample_weight) for _ in range(draws)]
    low, high = np.percentile(errors, (2.5, 97.5))
    return {"value": float(np.mean(errors)), "low": float(low), "high": float(high)}


def as_probabilities(logits: np.ndarray, multiclass: bool) -> np.ndarray:
    """Logits ``[N, C]`` to probabilities: a sigmoid each, or the softmax of classes that exclude each other.

    ``float64``: in ``float32`` all logits above 17 give 1, and such ties are another AUROC.
    """
    logits = logits.astype(np.float64)
    if multiclass:
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)
    return np.exp(-np.logaddexp(0, -logits))


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by.

    Attributes:
        value: above 1 takes confidence away.
        reason: why it was not fitted, blank if it was.
    """

    value: float = 1.0
    reason: str = ""


def fit_temperature(logits: np.ndarray, labels: np.ndarray, multiclass: bool = False) -> Temperature:
    """The one temperature with the least log loss, of all classes together (Guo et al. 2017), on validation.

    Targets are Platt's, (n + 1) / (n + 2) for n positive labels and 1 / (n + 2) for n negative ones (of exclusive
    classes the first for the one that holds, of n images): validation that happens to be told apart without an error
    does not ask for certainty.

    Args:
        logits: ``[N, C]``.
        labels: ``[N, C]`` 1, 0 or NaN.
        multiclass: exactly one class of each row holds.

    Returns:
        ``COLDEST`` to ``HOTTEST``; 1 with less than ``LEAST_LABELS`` positive or negative labels.
    """
    known = _one_of_each(labels) if multiclass else ~np.isnan(labels)  # [N] or [N, C]
    held = labels == 1
    positive, negative = int(held.sum()), int((labels == 0).sum())
    if multiclass:
        positive = negative = int(known.sum())
    if min(positive, negative) < LEAST_LABELS:
        return Temperature(1.0, f"{min(positive, negative)} labels of a kind in val, {LEAST_LABELS} are needed")
    logits = logits.astype(np.float64)
    if multiclass:
        logits, held = logits[known], held[known]
        own = (len(held) + 1) / (len(held) + 2)
        target = np.where(held, own, (1 - own) / max(held.shape[1] - 1, 1))
    else:
        target = np.where(held, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(sharpness: float) -> float:  # convex in 1 / temperature
        scaled = logits * sharpness
        if multiclass:
            return float((np.logaddexp.reduce(scaled, axis=1) - (target * scaled).sum(axis=1)).mean())
        return float((np.logaddexp(0, scaled) - target * scaled)[known].mean())

    return Temperature(1 / _least(loss, 1 / HOTTEST, 1 / COLDEST))


def _least(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum has it, to seven digits: by golden sections of the logarithm."""
    low, high, golden = math.log(low), math.log(high), (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = loss(math.exp(left)), loss(math.exp(right))
    while high - low > 1e-7:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = loss(math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = loss(math.exp(right))
    return math.exp((low + high) / 2)


def reliability(labels: np.ndarray, probabilities: np.ndarray, multiclass: bool = False) -> dict:
    """Log loss over the known labels, and calibration error: the mean of the classes, or of exclusive ones the top's.

    Args:
        labels: ``[N, C]`` 1, 0 or NaN.
        probabilities: ``[N, C]``.
        multiclass: exactly one class of each row holds.

    Returns:
        ``{"log_loss", "calibration_error"}``; ``None`` each where no label is known.
    """
    tiny = np.finfo(np.float32).tiny
    if multiclass:
        rows = _one_of_each(labels)
        if not rows.any():
            return {"log_loss": None, "calibration_error": None}
        own, given = (labels[rows] == 1).argmax(axis=1), probabilities[rows].astype(np.float64)
        loss = -np.log(np.maximum(given[np.arange(len(own)), own], tiny))
        return {
            "log_loss": float(loss.mean()),
            "calibration_error": calibration_error(given.argmax(axis=1) == own, given.max(axis=1)),
        }
    known = ~np.isnan(labels)
    if not known.any():
        return {"log_loss": None, "calibration_error": None}
    right = np.where(labels == 1, probabilities, 1 - probabilities.astype(np.float64))
    pairs = [(labels[rows, column], probabilities[rows, column]) for column, rows in enumerate(known.T) if rows.any()]
    return {
        "log_loss": float(-np.log(np.maximum(right[known], tiny)).mean()),
        "calibration_error": float(np.mean([calibration_error(truth, score) for truth, score in pairs])),
    }


def temperature_report(
    found: Temperature, parts: dict[str, tuple[np.ndarray, np.ndarray]], multiclass: bool = False
) -> dict:
    """What ``metrics.json`` says of a temperature that was asked for: its value, why it was not fitted, reliability
    before and after.

    Args:
        found: the temperature.
        parts: by split the labels ``[N, C]``, and the logits ``[N, C]`` before they were divided.
        multiclass: exactly one class of each row holds.
    """
    told = {"value": found.value, "reason": found.reason}
    for split, (labels, logits) in parts.items():
        both = {"before": logits, "after": logits / found.value}
        told[split] = {
            when: reliability(labels, as_probabilities(own, multiclass), multiclass) for when, own in both.items()
        }
    return told


def _one_of_each(labels: np.ndarray) -> np.ndarray:
    return (labels == 1).sum(axis=1) == 1


def describe_temperature(found: dict | None) -> str:
    """What a report of ``metrics.json`` says under ``temperature``, as a line; blank if none was asked for."""
    if not found:
        return ""
    if found["reason"]:
        return f"temperature: not fitted ({found['reason']}); probabilities are the model's own"
    bound = next((end for end in (COLDEST, HOTTEST) if abs(found["value"] / end - 1) < AT_BOUND), None)
    end = "" if bound is None else f" (the end of what is searched, {COLDEST:g} to {HOTTEST:g})"
    before, after = found["test"]["before"], found["test"]["after"]
    if before["log_loss"] is None:
        return f"temperature {found['value']:.3g}{end}, fitted on validation"
    told = [
        f"{name.replace('_', ' ')} {before[name]:.3f} before, {after[name]:.3f} after"
        for name in ("log_loss", "calibration_error")
    ]
    return (
        f"temperature {found['value']:.3g}{end}, fitted on validation and part of the model; on test, all classes: "
        f"{'; '.join(told)}"
    )
