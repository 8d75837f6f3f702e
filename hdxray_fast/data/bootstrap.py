"""Intervals over patients: they are drawn again, each with all that is theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def draws_of_patients(patients: Sequence[str], bootstraps: int, seed: int, at_once: int) -> Iterator[np.ndarray]:
    """How often each image or study is in each draw of patients with replacement, some draws at a time.

    Args:
        patients: ``N`` ids.
        bootstraps: how many draws in all.
        seed: of the draws, which are the same however many are made at once.
        at_once: draws in a part, at least 1.

    Yields:
        ``[draws, N] int64``; nothing where there are no patients.
    """
    _, member = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if not len(member):
        return
    count = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    for start in range(0, bootstraps, at_once):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, bootstraps - start))
        yield drawn[:, member]


def bootstrap_counts(patients: Sequence[str], bootstraps: int, seed: int) -> np.ndarray:
    """All of :func:`draws_of_patients` at once, ``[bootstraps, N] int64``."""
    nothing = np.zeros((0, len(patients)), np.int64)
    return next(draws_of_patients(patients, bootstraps, seed, max(1, bootstraps)), nothing)


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of a number over draws ``[bootstraps]``, of which there is at least one."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)
