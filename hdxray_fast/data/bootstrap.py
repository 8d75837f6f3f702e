"""Intervals over patients: they are drawn again, each with all that is theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

HELD = 2**29  # bytes of draws that are kept in memory; what does not fit is drawn again each time it is asked for
PART = 2**22  # numbers in a part of draws


class PatientDraws:
    """How often each patient is in each draw of patients with replacement.

    A million patients drawn a thousand times are a gigabyte even as bytes: draws are given a part at a time, and kept
    as small integers as long as they fit.

    Args:
        patients: ``N`` ids.
        bootstraps: how many draws; there are none where there are no patients.
        seed: of the draws, which are the same as those of :func:`draws_of_patients`.

    Attributes:
        member: ``[N]`` which patient, 0 to ``count - 1``.
        count: of patients.
    """

    def __init__(self, patients: Sequence[str], bootstraps: int, seed: int) -> None:
        self.member, self.count = _members(patients)
        self._bootstraps, self._seed = bootstraps if self.count else 0, seed
        self._kept: list[np.ndarray] | None = None

    def __len__(self) -> int:
        """How many draws."""
        return self._bootstraps

    def parts(self) -> Iterator[np.ndarray]:
        """All draws in order, some at a time: ``[draws, count] float64``."""
        if self._kept is not None:
            yield from (part.astype(np.float64) for part in self._kept)
            return
        kept: list[np.ndarray] = []
        size = 0
        for drawn in _drawn(self.count, self._bootstraps, self._seed, max(1, PART // max(1, self.count))):
            if size <= HELD:
                kept.append(drawn.astype(np.min_scalar_type(int(drawn.max()))))
                size += kept[-1].nbytes
            yield drawn.astype(np.float64)
        if size <= HELD:
            self._kept = kept


def _members(patients: Sequence[str]) -> tuple[np.ndarray, int]:
    """Which patient each of the ids ``[N]`` is, and how many patients there are."""
    names, member = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    return member, len(names)


def _drawn(count: int, bootstraps: int, seed: int, at_once: int) -> Iterator[np.ndarray]:
    """Draws of ``count`` patients, ``[draws, count] int64``: the same however many are made at once."""
    rng = np.random.default_rng(seed)
    for start in range(0, bootstraps if count else 0, at_once):
        yield rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, bootstraps - start))


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
    member, count = _members(patients)
    for drawn in _drawn(count, bootstraps, seed, at_once):
        yield drawn[:, member]


def bootstrap_counts(patients: Sequence[str], bootstraps: int, seed: int) -> np.ndarray:
    """All of :func:`draws_of_patients` at once, ``[bootstraps, N] int64``."""
    nothing = np.zeros((0, len(patients)), np.int64)
    return next(draws_of_patients(patients, bootstraps, seed, max(1, bootstraps)), nothing)


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of a number over draws ``[bootstraps]``, of which there is at least one."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)
