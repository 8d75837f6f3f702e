"""BLEU, ROUGE-L and CIDEr-D of texts that are split already, one reference each, as pycocoevalcap has them.

The field's numbers come from that package, which brings 100 MB of Java for METEOR; these three are counting alone. Its
constants, its beta and sigma, and its habit of taking lengths for CIDEr-D in bigrams are kept: the tests hold every
number against it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 4  # n-grams
BETA = 1.2  # of ROUGE-L: how much more recall weighs than precision
SIGMA = 6.0  # of CIDEr-D: bigrams by which lengths may differ
TINY, SMALL = 1e-15, 1e-9  # what pycocoevalcap adds to numerators and denominators of BLEU


def bleu_counts(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Counts of each text: n-grams that are right (4) and all (4), both lengths; ``[N, 10] float64``."""
    rows = []
    for made, truth in zip(generated, references, strict=True):
        words, others = made.split(), truth.split()
        right = [(_ngrams(words, n) & _ngrams(others, n)).total() for n in range(1, LONGEST + 1)]
        every = [max(0, len(words) - n + 1) for n in range(1, LONGEST + 1)]
        rows.append([*right, *every, len(words), len(others)])
    return np.array(rows, np.float64).reshape(-1, 2 * LONGEST + 2)


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to 4 of counts, or of their sums over texts; ``[B, 10]`` -> ``[B, 4]``."""
    correct, every, made, truth = counts[:, :LONGEST], counts[:, LONGEST:-2], counts[:, -2], counts[:, -1]
    precisions = np.cumprod((correct + TINY) / (every + SMALL), axis=1)
    ratio = (made + TINY) / (truth + SMALL)
    with np.errstate(over="ignore"):
        brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return precisions ** (1 / np.arange(1, LONGEST + 1)) * brevity[:, None]


def rouge_l(generated: Sequence[str], references: Sequence[str]) -> list[float]:
    """Of each text: F of precision and recall of the longest common subsequence of words."""
    found = []
    for made, truth in zip(generated, references, strict=True):
        words, others = made.split(" "), truth.split(" ")
        common = _common(words, others)
        precision, recall = common / len(words), common / len(others)
        found.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if common else 0.0)
    return found


def cider_d(generated: Sequence[str], references: Sequence[str]) -> list[float]:
    """Of each text: n-grams that both have, weighed by how rare they are among all ``references``; 0 to 10."""
    sides = [[text.split() for text in texts] for texts in (generated, references)]
    scores = np.zeros(len(references))
    for n in range(1, LONGEST + 1):
        made, truths = ([_ngrams(words, n) for words in side] for side in sides)
        seen = Counter(gram for truth in truths for gram in truth)
        rarity = {gram: math.log(len(truths)) - math.log(count) for gram, count in seen.items()}
        unseen = math.log(len(truths))
        for row, pair in enumerate(zip(made, truths, strict=True)):
            ours, theirs = ({gram: count * rarity.get(gram, unseen) for gram, count in one.items()} for one in pair)
            length = math.hypot(*ours.values()) * math.hypot(*theirs.values())
            if length > 0:
                shared = ours.keys() & theirs.keys()
                scores[row] += sum(min(ours[gram], theirs[gram]) * theirs[gram] for gram in shared) / length
    bigrams = np.array([[max(0, len(words) - 1) for words in side] for side in sides])
    return (10 / LONGEST * scores * np.exp(-((bigrams[0] - bigrams[1]) ** 2) / (2 * SIGMA**2))).tolist()


def _ngrams(words: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence: a row of its table is the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    row = every = (1 << len(first)) - 1
    for word in second:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & every
    return len(first) - row.bit_count()
