"""Two models on the same cases: the difference of a score, its 95 % interval over patients, and p.

Both are measured on the same draws of patients, so that what is hard for both cancels out. Percentiles of a few drawn
patients lie too close together; they are taken further out, as a t distribution lies beyond a normal one (Hesterberg
2015, "What teachers should know about the bootstrap", https://doi.org/10.1080/00031305.2015.1089789, section 5.3), and
p is the level at which that interval would touch zero. Several runs of a model are a sample of the runs it could have
had: their spread comes on top of that over patients, as a t variate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

from ..errors import MissingDependencyError
from ..extras import install
from .bootstrap import draws_of_patients

LEVEL = 0.05
FEWEST, FEW = 5, 10  # patients of the rarer kind: no interval below the first, one with a mark below the second
TAIL = 10  # draws beyond zero; fewer say little about how many there are
CHUNK = 250_000  # weights at once: a part and what is made of it stay in the processor's cache


def draw_patients(patients: Sequence[str], bootstraps: int, seed: int) -> Iterator[np.ndarray]:
    """Draws of patients with replacement, a part at a time.

    Args:
        patients: ``N`` ids.
        bootstraps: how many draws in all.
        seed: of the draws; the parts of one seed are always the same.

    Yields:
        ``[draws, N] float64``, how often each case is in each draw.
    """
    for drawn in draws_of_patients(patients, bootstraps, seed, max(1, CHUNK // max(1, len(patients)))):
        yield drawn.astype(np.float64)


class Measured:
    """A score of the runs of one model.

    Args:
        values: ``[R]`` of each run on all cases.
        drawn: ``[R, B]`` on each draw of patients; NaN where it is not defined.
    """

    def __init__(self, values: np.ndarray, drawn: np.ndarray) -> None:
        self.values, self.drawn = np.asarray(values, np.float64), np.asarray(drawn, np.float64)

    @property
    def value(self) -> float:
        """The mean over runs."""
        return float(self.values.mean())

    def spread(self) -> tuple[float, int]:
        """Variance of the mean over runs by what other runs could be, and its degrees of freedom; 0 and 0 of one."""
        runs = len(self.values)
        return (float(self.values.var(ddof=1)) / runs, runs - 1) if runs > 1 else (0.0, 0)


def difference(first: Measured, second: Measured, units: float, seed: int = 0) -> dict | None:
    """``second`` minus ``first``.

    Args:
        first, second: measured on the same draws.
        units: patients that carry the score: of the rarer kind, where there are two.
        seed: of what is drawn for several runs.

    Returns:
        ``first``, ``second`` (means over runs), ``difference``, ``low``, ``high`` (95 %), ``p`` (that there is none,
        two-sided) and ``drawn``, on how many draws these rest; the last four are ``None`` with fewer than ``FEWEST``
        units or without draws. ``None`` if a value is not defined.
    """
    row = {"first": first.value, "second": second.value, "difference": second.value - first.value}
    if not np.isfinite(row["difference"]):
        return None
    nothing = {"low": None, "high": None, "p": None, "drawn": None}
    if units < FEWEST:
        return {**row, **nothing}
    drawn = second.drawn.mean(axis=0) - first.drawn.mean(axis=0) + _of_runs((first, second), first.drawn.shape[1], seed)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 2:
        return {**row, **nothing}
    tail = 100 * widened(LEVEL / 2, units)
    low, high = np.percentile(drawn, (tail, 100 - tail))
    return {
        **row,
        "low": float(low),
        "high": float(high),
        "p": p_of_draws(drawn, row["difference"], units),
        "drawn": len(drawn),
    }


def _of_runs(models: Sequence[Measured], count: int, seed: int) -> np.ndarray:
    """``count`` draws of what other runs would add to a difference: a t variate with Welch's degrees of freedom."""
    spreads = [model.spread() for model in models]
    variance = sum(own for own, _ in spreads)
    if not variance > 0:
        return np.zeros(count)
    freedom = variance**2 / sum(own**2 / degrees for own, degrees in spreads if degrees)
    return variance**0.5 * np.random.default_rng([seed, 1]).standard_t(freedom, count)


def widened(tail: float, units: float) -> float:
    """The share of draws to leave out on each side for a ``tail`` of a t distribution with ``units - 1`` degrees."""
    t = _scipy_t().ppf(tail, units - 1)
    return NormalDist().cdf(float(t) * (units / (units - 1)) ** 0.5)


def p_of_draws(drawn: np.ndarray, value: float, units: float) -> float:
    """Two-sided p that the difference is zero, such that it is 0.05 where the 95 % interval touches zero.

    Args:
        drawn: ``[B]`` finite differences.
        value: the difference on all cases.
        units: as for :func:`difference`.
    """
    beyond = min((drawn < 0).sum(), (drawn > 0).sum()) + (drawn == 0).sum() / 2
    z = -NormalDist().inv_cdf(min(0.5, (beyond + 0.5) / (len(drawn) + 1)))
    if beyond < TAIL and (spread := drawn.std()) > 0:  # further out than draws tell
        z = max(z, abs(value) / float(spread))
    return float(2 * _scipy_t().sf(z * ((units - 1) / units) ** 0.5, units - 1))


def units_of_mean(spreads: Sequence[float], units: Sequence[float]) -> float:
    """Patients that carry a mean of scores, by Satterthwaite's degrees of freedom.

    Args:
        spreads: standard deviation of each score.
        units: patients that carry each.
    """
    variances, freedom = np.square(np.asarray(spreads, np.float64)), np.asarray(units, np.float64) - 1
    if not variances.any():
        return float(min(units))
    return float(variances.sum() ** 2 / (variances**2 / freedom).sum() + 1)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction (1979): each p such that those at most 0.05 hold together; ``None`` stays."""
    order = sorted((value, number) for number, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, number) in enumerate(order):
        largest = max(largest, min(1.0, value * (len(order) - rank)))
        corrected[number] = largest
    return corrected


def _scipy_t():
    try:
        from scipy.stats import t
    except ImportError as error:
        raise MissingDependencyError(f"differences need scipy: {install('classify')}") from error
    return t
