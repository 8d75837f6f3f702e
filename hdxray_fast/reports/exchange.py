"""Do texts fit their own studies better than other ones? If not, they were written without the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.bootstrap import interval
from ..data.paired import draw_patients
from .metrics import Scores, score_reports

FEWEST = 10  # studies, below which nothing can be told
NAMES = ("bleu4", "rouge_l", "cider_d")


def exchanged_scores(
    generated: Sequence[str],
    references: Sequence[str],
    patients: Sequence[str],
    scores: Scores,
    bootstraps: int = 1000,
    seed: int = 0,
) -> dict:
    """Score every generated text against another study's reference, and compare with its own.

    Args:
        generated, references, scores: as given to and by :func:`~hdxray_fast.reports.metrics.score_reports`.
        patients: of every study.
        bootstraps: drawings of patients for the interval; see :mod:`~hdxray_fast.reports.intervals`.
        seed: of the exchange and of the drawings.

    Returns:
        ``bleu4``, ``rouge_l`` and ``cider_d`` of the exchanged texts; ``gain``: mean difference in ROUGE-L between own
        and other studies, and its 95 % ``interval``; ``flagged``: ``""``, or in words that the difference may be none.
        Empty with fewer than ten studies or one patient.
    """
    if len(generated) < FEWEST or len(set(patients)) < 2:
        return {}
    source = exchange(patients, seed)
    other = score_reports([generated[i] for i in source], references, scores.convention, meteor=False)
    gain = np.asarray(scores.each["rouge_l"]) - np.asarray(other.each["rouge_l"])  # [N], by reference
    found = {**{name: other.totals[name] for name in NAMES}, "gain": float(gain.mean()), "interval": [], "flagged": ""}
    if bootstraps > 0:
        drawn = draw_patients(patients, bootstraps, seed)  # [b, N] each
        low, high = interval(np.concatenate([weights @ gain / weights.sum(axis=1) for weights in drawn]))
        found["interval"] = [low, high]
        if low <= 0:
            found["flagged"] = (
                f"given to other studies the same texts score ROUGE-L {other.totals['rouge_l']:.3f}, and "
                f"{scores.totals['rouge_l']:.3f} with their own: the 95 % interval of the difference, {low:.3f} to "
                f"{high:.3f}, does not lie above 0"
            )
    return found


def exchange(patients: Sequence[str], seed: int) -> np.ndarray:
    """For every study the number of one of another patient (where that can be), each taken once; ``[N]``."""
    count = len(patients)
    order = np.random.default_rng(seed).permutation(count)
    # studies of a patient side by side, shifted past the largest patient: nobody meets himself if none has over half
    place = {patient: position for position, patient in enumerate(dict.fromkeys(patients[i] for i in order))}
    order = np.array(sorted(order, key=lambda i: place[patients[i]]))
    largest = max(np.unique(np.asarray(patients, dtype=str), return_counts=True)[1])
    source = np.empty(count, int)
    source[order] = np.roll(order, -int(largest))
    return source
