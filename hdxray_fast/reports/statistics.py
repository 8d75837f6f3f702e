"""How long generated reports are, and whether a model says the same for every image."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

SAME_SHARE = 0.5  # of the studies: from here on the model is flagged
FEW_DIFFERENT = 0.1  # flagged as well if so few of its texts differ though the references do


def length_statistics(texts: Sequence[str], split: Callable[[str], str]) -> dict:
    """Tokens per text: ``mean``, ``median``, ``shortest``, ``longest``, and how many texts are ``empty``."""
    lengths = [len(split(text).split()) for text in texts]
    return {
        "mean": round(statistics.fmean(lengths), 2),
        "median": statistics.median(lengths),
        "shortest": min(lengths),
        "longest": max(lengths),
        "empty": lengths.count(0),
    }


def duplicate_statistics(generated: Sequence[str], references: Sequence[str], split: Callable[[str], str]) -> dict:
    """Repeats among generated texts, and whether they say that images are not looked at.

    Returns:
        ``different`` texts, ``different_references``, ``most_common`` text and its ``most_common_share``, and
        ``flagged``: ``""``, or in words why the model seems to say the same whatever the image shows.
    """
    counts = Counter(split(text) for text in generated)
    truths = Counter(split(text) for text in references)
    (common, times) = counts.most_common(1)[0]
    shown = next(text for text in generated if split(text) == common)
    share, usual = times / len(generated), truths.most_common(1)[0][1] / len(references)
    flagged = ""
    if len(generated) > 1 and len(truths) > 1:
        if len(counts) == 1:
            flagged = f"the same text for all {len(generated)} studies"
        elif share >= SAME_SHARE and share > 2 * usual:
            flagged = f"the same text for {share:.0%} of the studies (the most common reference: {usual:.0%})"
        elif len(counts) <= FEW_DIFFERENT * len(truths):
            flagged = f"{len(counts)} different texts where the references have {len(truths)}"
    return {
        "different": len(counts),
        "different_references": len(truths),
        "most_common": shown,
        "most_common_share": round(share, 4),
        "flagged": flagged,
    }
