"""95 % intervals of report scores: patients are drawn again, with all of their studies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.bootstrap import interval
from ..data.paired import draw_patients
from .metrics import Scores
from .ngram_scores import bleu_counts, bleu_of_counts

BLEU = ("bleu1", "bleu2", "bleu3", "bleu4")


def score_intervals(
    generated: Sequence[str],
    references: Sequence[str],
    patients: Sequence[str],
    scores: Scores,
    bootstraps: int = 1000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Percentile bootstrap of BLEU (computed anew from counts), ROUGE-L and CIDEr-D (means; rarities of n-grams held).

    Args:
        generated, references, scores: as given to and by :func:`~hdxray_fast.reports.metrics.score_reports`.
        patients: of every study.
        bootstraps: how many drawings.
        seed: of the drawings.

    Returns:
        ``[low, high]`` by name; empty with fewer than two patients or no drawings. METEOR has none.
    """
    if len(set(patients)) < 2 or bootstraps < 1:
        return {}
    split = scores.convention.split
    counts = bleu_counts([split(text) for text in generated], [split(text) for text in references])
    means = [name for name in ("rouge_l", "cider_d") if name in scores.each]
    each = np.column_stack([counts, *(scores.each[name] for name in means), np.ones(len(counts))])
    sums = np.concatenate([drawn @ each for drawn in draw_patients(patients, bootstraps, seed)])  # [B, 10 + means + 1]
    values = dict(zip(BLEU, bleu_of_counts(sums[:, : counts.shape[1]]).T, strict=True))
    for number, name in enumerate(means, counts.shape[1]):
        values[name] = sums[:, number] / sums[:, -1]
    return {name: list(interval(value)) for name, value in values.items()}
