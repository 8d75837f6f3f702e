"""95 % intervals of a class's metrics and of their mean over classes, over patients, that hold for few cases too.

Percentiles of draws do not: few patients, drawn again, lie too close together, and at the ends of the scale there is
nothing beyond them to draw. What stands here was chosen by `benchmarks/experiments/coverage.py`. All of it asks which
true values would not make the observed one a surprise, as Wilson's interval does, with the spread that the true value
would have; so an interval has a length even where all cases are right.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..data.bootstrap import PatientDraws
from ..data.paired import FEW, FEWEST
from ..errors import MissingDependencyError
from ..extras import install
from .delong import delong_error, delong_parts
from .operating_points import predictive_values

Interval = tuple[float, float]
TAIL = 0.025
NORMAL = NormalDist().inv_cdf(1 - TAIL)
TRUST = 100  # patients of the rarer kind from which on DeLong's variance counts more than the model's, if it is smaller
ALIKE = 2  # patients that a share's interval takes for granted to have images that are alike
STEPS = 16  # of a bisection over draws


@dataclass(frozen=True)
class Support:
    """How many images and patients carry a class.

    Attributes:
        positive, negative: images.
        positive_patients, negative_patients: patients with such an image.
    """

    positive: int
    negative: int
    positive_patients: int
    negative_patients: int

    @classmethod
    def of(cls, truth: np.ndarray, patients: np.ndarray) -> Support:
        """Count ``truth [N]`` (0 or 1) and ``patients [N]``."""
        kinds = [truth == 1, truth == 0]
        return cls(*(int(rows.sum()) for rows in kinds), *(len(np.unique(patients[rows])) for rows in kinds))

    @property
    def units(self) -> int:
        """Patients of the rarer kind: what an interval rests on."""
        return min(self.positive_patients, self.negative_patients)

    @property
    def few(self) -> str:
        """``"too few"`` for an interval, ``"few"`` where one has a mark, or nothing."""
        return "too few" if self.units < FEWEST else "few" if self.units < FEW else ""


class ClassIntervals:
    """Intervals of one class.

    Args:
        truth: ``[N]`` 0 or 1, of at least two patients each.
        score: ``[N]`` in [0, 1].
        called: ``[N]`` bool, called present.
        patients: ``[N]`` ids.
        weights: ``[N]`` of the images, at least 0; left out, all equal.
    """

    def __init__(
        self, truth: np.ndarray, score: np.ndarray, called: np.ndarray, patients: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        weights = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
        some = weights > 0
        self.truth, self.score, self.called, self.weights = truth[some], score[some], called[some], weights[some]
        _, self.member = np.unique(np.asarray(patients)[some], return_inverse=True)
        self.support = Support.of(self.truth, self.member)

    def of(self, metric: str, value: float, drawn: np.ndarray) -> Interval | None:
        """The interval of ``auroc``, ``auprc``, ``f1``, ``balanced_accuracy``, ``sensitivity`` or ``specificity``.

        Args:
            metric: its name.
            value: as measured.
            drawn: ``[B]`` of draws of patients, NaN where not defined; only ``auprc`` rests on them.

        Returns:
            ``low, high``; ``None`` if there are too few patients, or draws.
        """
        if self.support.units < FEWEST:
            return None
        if metric == "auprc":
            return interval_of_draws(value, drawn, self.support.units, 4 * self.support.positive_patients)
        return getattr(self, metric)()

    def auroc(self) -> Interval:
        """Newcombe's fifth method (2006) for patients with several images.

        The variance is Hanley and McNeil's, of the true value, at as many positives and negatives as the images are
        worth by the spread of DeLong's components within patients. Where DeLong's variance over patients (Obuchowski
        1997) is the larger it is scaled to that, where it is the smaller the more so the more patients there are.
        """
        parts = delong_parts(self.truth, self.score, self.weights)
        positive = self.truth == 1
        value = float(np.average(parts[positive], weights=self.weights[positive]))
        error = delong_error(self.truth, parts, self.member, self.weights)
        worth = [worth_of(parts[rows], self.weights[rows], self.member[rows]) for rows in (positive, ~positive)]
        edge, units = 1 / (2 * min(worth) + 2), self.support.units
        ratio = error**2 / _hanley_mcneil(min(max(value, edge), 1 - edge), *worth)
        if ratio < 1:
            ratio = (ratio * units + TRUST) / (units + TRUST)
        return _not_surprised(value, lambda true: ratio * _hanley_mcneil(true, *worth), t_quantile(units))

    def sensitivity(self) -> Interval:
        """Wilson's interval of the share of positives that are called present."""
        return self._share(self.truth == 1, self.called)

    def specificity(self) -> Interval:
        """Wilson's interval of the share of negatives that are not called present."""
        return self._share(self.truth == 0, ~self.called)

    def balanced_accuracy(self) -> Interval:
        """The intervals of sensitivity and specificity, squared and added (Newcombe 1998)."""
        return sum_of_intervals(self._rates(), [self.sensitivity(), self.specificity()], np.eye(2))

    def predictive_values(self, prevalence: float) -> list[Interval]:
        """Of positive and negative predictive value at a prevalence: what the ends of sensitivity and specificity do to
        them, squared and added."""
        own, other = self._rates()
        middle = predictive_values(own, other, prevalence)
        ends = []
        for one, two in zip(self.sensitivity(), self.specificity(), strict=True):
            by = [predictive_values(one, other, prevalence), predictive_values(own, two, prevalence)]
            ends.append(np.hypot(*(np.nan_to_num(np.subtract(part, middle)) for part in by)))
        return [(max(m - d, 0.0), min(m + u, 1.0)) for m, d, u in zip(middle, *ends, strict=True)]

    def _rates(self) -> tuple[float, float]:
        """Sensitivity and specificity."""
        pairs = ((self.truth == 1, self.called), (self.truth == 0, ~self.called))
        own, other = (float(np.average(right[rows], weights=self.weights[rows])) for rows, right in pairs)
        return own, other

    def f1(self) -> Interval:
        """Wilson's interval of the share of true positives among all that is positive or called so, made an F1."""
        either = (self.truth == 1) | self.called
        return tuple(2 * end / (1 + end) for end in self._share(either, (self.truth == 1) & self.called))

    def _share(self, rows: np.ndarray, right: np.ndarray) -> Interval:
        return share_interval(right[rows], self.weights[rows], self.member[rows])


class Gaps:
    """Where probabilities and frequencies differ, in all and in draws: the calibration error is the sum of sizes.

    Attributes:
        observed: ``[K]`` signed gaps of the bins, each as a share of all cases.
        deviations: ``[B, K]`` what chance may add to them, of each draw of patients.

    The error of any sample lies above the true one, since gaps of chance have a size too, and that of a draw lies above
    the sample's. So the interval holds the true errors that would not make the observed one a surprise. It matters how
    a true error is spread over the bins: the interval is the longest of two answers, gaps where they stand out from
    chance, and gaps everywhere.

    Two things are added to that for few cases:

    * A bin whose cases are all alike, ten of ten say, does not move in any draw, and tells its rate no better for that.
      Of Wilson's interval the middle is the rate ``r`` with ``q^2 / 2`` cases of either kind added, of all ``n`` cases
      as of those in a bin; what this makes of the variance, ``r' (1 - r') - r (1 - r)``, is added to the deviations.
    * With one bin the error is ``|t + d|`` for a true gap ``t`` and a deviation ``d``. About 0 it would be a surprise
      for any ``t``, for ``d`` seldom meets ``-t``; and yet with 18 cases at 0.5 it is 0 in one of eight samples of a
      true rate of 0.6. But the true error is at least the size of the true mean gap, which its own sign and spread
      tell: the upper end is never under ``|mean gap| + q * its standard error``.
    """

    def __init__(self, observed: np.ndarray, deviations: np.ndarray) -> None:
        self.observed, self.deviations = observed, deviations

    @classmethod
    def of(
        cls,
        bins: np.ndarray,
        score: np.ndarray,
        truth: np.ndarray,
        weights: np.ndarray,
        member: np.ndarray,
        draws: PatientDraws,
        count: int,
    ) -> Gaps:
        """Of images.

        Args:
            bins: ``[N]`` from 0 to ``count - 1``.
            score: ``[N]`` probabilities.
            truth: ``[N]`` 0 or 1.
            weights: ``[N]``.
            member: ``[N]`` which patient, from 0 on.
            draws: of the patients.
            count: of bins.
        """
        patients = draws.count
        gaps = weights * (score - truth)
        sums = np.bincount(member * count + bins, gaps, patients * count).reshape(patients, count)
        totals = np.bincount(member, weights, patients)
        observed = sums.sum(axis=0) / totals.sum()
        each = [np.zeros((0, count))]
        for drawn in draws.parts():
            drawn_totals = drawn @ totals
            each.append(drawn @ sums / np.where(drawn_totals > 0, drawn_totals, np.nan)[:, None])
        drawn = np.concatenate(each)
        units = len(np.unique(member))
        quantile = t_quantile(units)
        share = np.bincount(bins, weights, count) / weights.sum()
        rate = np.bincount(bins, weights * truth, count) / np.where(share > 0, share * weights.sum(), 1)
        added = quantile**2 / units
        shrunk = (rate + added / 2) / (1 + added)
        untold = np.maximum(share * (shrunk * (1 - shrunk) - rate * (1 - rate)), 0) / units
        told = (observed.round(6) + 0.0).tobytes()  # to the last bit sums hang on the order of rows; no minus zero
        rng = np.random.default_rng(zlib.crc32(told))  # the same again; other for other classes
        drawn = drawn - observed + rng.standard_normal(drawn.shape) * untold**0.5
        return cls(observed, drawn * (quantile / NORMAL * (units / (units - 1)) ** 0.5))

    @classmethod
    def mean(cls, each: Sequence[Gaps]) -> Gaps:
        """Those of several classes, whose error is the mean of theirs."""
        observed, deviations = ([getattr(one, name) for one in each] for name in ("observed", "deviations"))
        return cls(np.concatenate(observed) / len(each), np.concatenate(deviations, axis=1) / len(each))

    def interval(self) -> Interval | None:
        """Of the calibration error; ``None`` without draws."""
        deviations = self.deviations[np.isfinite(self.deviations).all(axis=1)]
        if len(deviations) < 2:
            return None
        deviations = np.concatenate([deviations, -deviations])  # of few cases they are skewed to where the sample lies
        error, chance = float(np.abs(self.observed).sum()), deviations.std(axis=0)
        # the value too: where gaps are all of chance it lies above what they leave, which would read as a mistake
        found = [error]
        standing_out = np.sqrt(np.maximum(self.observed**2 - chance**2, 0))
        for size in (standing_out if standing_out.any() else np.abs(self.observed), chance):
            if size.any():
                found += _sizes_not_surprised(np.copysign(size / size.sum(), self.observed), deviations, error)
        mean_gap = abs(float(self.observed.sum())) + NORMAL * float(deviations.sum(axis=1).std())
        return min(found), min(max(*found, mean_gap), 1.0)


def _sizes_not_surprised(shape: np.ndarray, deviations: np.ndarray, error: float) -> list[float]:
    """How small and how large a true error of this ``shape [K]`` may be, by bisection."""

    def above(size: float) -> float:
        return float((np.abs(size * shape + deviations).sum(axis=1) >= error).mean())

    ends = []
    for level in (TAIL, 1 - TAIL):
        low, high = 0.0, 3 * max(error, float(np.abs(deviations).sum(axis=1).max()))
        if above(low) > level:
            high = low
        for _ in range(STEPS if high > low else 0):
            middle = (low + high) / 2
            low, high = (low, middle) if above(middle) > level else (middle, high)
        ends.append(high)
    return ends


def interval_of_draws(value: float, drawn: np.ndarray, units: int, most: float) -> Interval | None:
    """Wilson's interval of a number in [0, 1] that is worth as many cases as a share with its spread over draws.

    Args:
        value: as measured.
        drawn: ``[B]`` of draws of patients, NaN where not defined.
        units: patients that it rests on, at least 2.
        most: cases that it may be worth: at the ends of the scale draws do not differ.

    Returns:
        ``low, high``; ``None`` with fewer than two draws.
    """
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 2 or units < 2:
        return None
    variance = float(drawn.var(ddof=1)) * units / (units - 1)
    spread = value * (1 - value)
    return wilson(value, min(spread / variance, most) if variance > 0 and spread > 0 else most, t_quantile(units))


def mean_interval(values: Sequence[float], intervals: Sequence[Interval], drawn: np.ndarray) -> Interval:
    """Of a mean over classes, from the classes' own (Zou and Donner 2008).

    Args:
        values: of ``C`` classes.
        intervals: of each.
        drawn: ``[C, B]`` of the draws that define all of them, for their correlation.
    """
    correlation = np.eye(len(values))
    moving = drawn.std(axis=1) > 0 if drawn.shape[1] > 1 else np.zeros(len(values), bool)
    if moving.any():
        correlation[np.ix_(moving, moving)] = np.corrcoef(drawn[moving])
    return sum_of_intervals(values, intervals, correlation)


def sum_of_intervals(values: Sequence[float], intervals: Sequence[Interval], correlation: np.ndarray) -> Interval:
    """Of the mean of ``values`` with ``correlation [C, C]``: distances to the ends, added as errors are."""
    ends = np.asarray(intervals, np.float64).T
    middle, count = float(np.mean(values)), len(values)
    down, up = np.maximum(values - ends[0], 0), np.maximum(ends[1] - values, 0)
    reach = [max(float(side @ correlation @ side), 0.0) ** 0.5 / count for side in (down, up)]
    return max(middle - reach[0], 0.0), min(middle + reach[1], 1.0)


def share_interval(right: np.ndarray, weights: np.ndarray, member: np.ndarray) -> Interval:
    """Wilson's interval of the share of images that are ``right [N]`` (bool); the rest as for :func:`worth_of`."""
    share = float(np.average(right, weights=weights))
    patients = [len(np.unique(member[rows])) for rows in (right, ~right)]
    worth = worth_of(right.astype(np.float64), weights, member, min(patients))
    return wilson(share, worth, t_quantile(len(np.unique(member))))


def worth_of(values: np.ndarray, weights: np.ndarray, member: np.ndarray, tell: float = np.inf) -> float:
    """As how many independent images those of patients count for a mean: between as if each patient's were one image
    and all of them, by the spread of the patients' sums.

    Args:
        values: ``[N]`` of the images.
        weights: ``[N]``, above 0.
        member: ``[N]`` which patient, whole numbers.
        tell: patients whose images tell whether they are alike; with few of them it is rather believed that they are.
    """
    deviation = weights * (values - np.average(values, weights=weights))
    held = np.bincount(member, weights)
    patients, images = len(np.unique(member)), len(values)
    most, least = (weights.sum() ** 2 / (part**2).sum() for part in (weights, held))
    alone = (deviation**2).sum() * images / max(images - 1, 1)
    together = (np.bincount(member, deviation) ** 2).sum() * patients / max(patients - 1, 1)
    if alone == 0:
        return float(least)
    loss = min(max(together / alone, 1.0), most / least)  # 1: as good as independent
    if tell < np.inf:
        loss = (loss * tell + ALIKE * most / least) / (tell + ALIKE)
    return float(most / loss)


def with_interval(value: float, ends: Interval | None) -> dict | None:
    """``{"value", "low", "high"}``, the last two ``None`` without an interval; ``None`` of what is not defined."""
    if np.isnan(value):
        return None
    if ends is None:
        return {"value": float(value), "low": None, "high": None}
    low, high = ends  # all of them hold their value, but for the last bit
    return {"value": float(value), "low": float(min(low, value)), "high": float(max(high, value))}


def wilson(share: float, cases: float, quantile: float) -> Interval:
    """Wilson's interval of a share of ``cases``, which need not be a whole number."""
    shrink = quantile**2 / cases
    middle = (share + shrink / 2) / (1 + shrink)
    reach = quantile / (1 + shrink) * (share * (1 - share) / cases + shrink / (4 * cases)) ** 0.5
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def t_quantile(units: float) -> float:
    """97.5 % of a t distribution with ``units - 1`` degrees of freedom."""
    try:
        from scipy.special import stdtrit
    except ImportError as error:
        raise MissingDependencyError(f"intervals need scipy: {install('classify')}") from error
    return float(stdtrit(max(units - 1, 1), 1 - TAIL))


def _hanley_mcneil(area: float, positives: float, negatives: float) -> float:
    """Variance of an AUROC, with the mean of both counts in the place of each (Newcombe 2006)."""
    mean = (positives + negatives) / 2 - 1
    more = mean * (1 - area) / (2 - area) + mean * area / (1 + area)
    return area * (1 - area) * (1 + more) / (positives * negatives)


def _not_surprised(value: float, variance: Callable[[float], float], quantile: float) -> Interval:
    """The true values of which ``value`` lies at most ``quantile`` standard errors away, by bisection."""
    ends = []
    for far in (0.0, 1.0):
        near = value
        for _ in range(50):
            middle = (far + near) / 2
            if (middle - value) ** 2 > quantile**2 * variance(middle):
                far = middle
            else:
                near = middle
        ends.append(near)
    return ends[0], ends[1]
