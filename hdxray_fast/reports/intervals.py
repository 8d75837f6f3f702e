"""95 % intervals of report scores: patients are drawn again, with all of their studies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.bootstrap import interval
from ..data.paired import draw_patients
from .metrics import Scores

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


def bleu_counts(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """pycocoevalcap's counts of texts that are split: n-grams that are right (4) and all (4), both lengths; [N, 10]."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for made, truth in zip(generated, references, strict=True):
        scorer += (made, [truth])
    return np.array([[*c["correct"], *c["guess"], c["testlen"], *c["reflen"]] for c in scorer.ctest], float)


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to 4 of summed counts, as pycocoevalcap has it; [B, 10] -> [B, 4]."""
    correct, guess, made, truth = counts[:, :4], counts[:, 4:8], counts[:, 8], counts[:, 9]
    precisions = np.cumprod((correct + 1e-15) / (guess + 1e-9), axis=1)
    ratio = (made + 1e-15) / (truth + 1e-9)
    with np.errstate(over="ignore"):
        brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return precisions ** (1 / np.arange(1, 5)) * brevity[:, None]
