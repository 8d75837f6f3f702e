"""Intervals over patients: they are drawn again, each with all that is theirs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_counts(patients: Sequence[str], bootstraps: int, seed: int) -> np.ndarray:
    """How often each image or study is in each draw of patients with replacement, ``[bootstraps, N] int64``."""
    _, member = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    count = int(member.max()) + 1 if len(member) else 0
    rng = np.random.default_rng(seed)
    drawn = (
        rng.multinomial(count, np.full(count, 1 / max(count, 1)), size=bootstraps) if count else np.zeros((0, 0), int)
    )
    return drawn[:, member]


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of a number over draws ``[bootstraps]``, of which there is at least one."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)
