"""Groups, such as the images of a patient, dealt out to splits: exact shares, and every class in every split.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011) with groups in the place of examples, and a search that
moves and swaps groups afterwards: greedy choices of a small table leave more to be had.
"""

from __future__ import annotations

import numpy as np

OVER, MISSING, IMAGES = 1e7, 1e5, 1e2  # what goes before what; a class's own deviation counts 1
SEARCHED = 500_000  # numbers that a round of the search may look at for each two splits
ROUNDS, LARGE = 300, 5000  # of a large table the greedy choices are good, and a fifth of the rounds is enough


def deal_out(counts: np.ndarray, shares: np.ndarray, least: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The split of each group, ``[G] int64``.

    Every split gets its share of the images to within half of the largest group; within that, no class is left without
    its least number of examples where it could have them; within that, shares of images are exact, and then shares of
    each class. Groups that count the same are dealt out in the order given.

    Args:
        counts: ``[G, 1 + S]`` int: images of each group, and how many of them are of each stratum (the positives of a
            class, its negatives).
        shares: ``[K]`` of the images, adding up to 1.
        least: ``[K]`` examples of each stratum that a split should have.
        weight: ``[K]``, how much one that is missing counts: of two splits the one with more is served first.
    """
    counts = np.asarray(counts, np.int64)
    splits = np.zeros(len(counts), np.int64)
    if len(shares) < 2 or not counts.any():
        return splits
    goal = _Goal(counts, np.asarray(shares, float), np.asarray(least, float), np.asarray(weight, float))
    splits = _greedy(counts, goal)
    return _improved(counts, splits, goal)


class _Goal:
    """What splits should hold, ``target [K, 1 + S]``, and how far they are from it."""

    def __init__(self, counts: np.ndarray, shares: np.ndarray, least: np.ndarray, weight: np.ndarray) -> None:
        total = counts.sum(0)
        self.target = shares[:, None] * total
        self.slack = max(0.5, counts[:, 0].max() / 2)
        self.least = np.minimum(least[:, None], total[1:])
        self.weight = weight

    def cost(self, split: int, held: np.ndarray) -> np.ndarray:
        """Of holding ``[..., 1 + S]``, for one split."""
        off = held - self.target[split]
        images, strata = off[..., 0], off[..., 1:]
        missing = np.maximum(self.least[split] - held[..., 1:], 0).sum(-1)
        uneven = (strata**2 / (self.target[split, 1:] + 1)).sum(-1)
        over = np.maximum(np.abs(images) - self.slack, 0)
        return OVER * over + MISSING * self.weight[split] * missing + IMAGES * images**2 + uneven


def _greedy(counts: np.ndarray, goal: _Goal) -> np.ndarray:
    """The rarest stratum first, each of its groups to the split that lacks most of it."""
    need = goal.target.copy()
    need[:, 1:] = np.maximum(need[:, 1:], goal.least)  # of few examples each split is to have one
    splits = np.zeros(len(counts), np.int64)
    free = counts.any(1)
    left = counts[free].sum(0)
    while free.any():
        stratum = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        groups = np.flatnonzero(free & (counts[:, stratum] > 0))
        for group in groups[np.argsort(-counts[groups, 0], kind="stable")]:
            lacking, images = need[:, stratum].round(6).tolist(), need[:, 0].tolist()
            split = max(range(len(need)), key=lambda one: (lacking[one], images[one]))
            splits[group] = split
            need[split] -= counts[group]
        free[groups] = False
        left = counts[free].sum(0)
    return splits


def _improved(counts: np.ndarray, splits: np.ndarray, goal: _Goal) -> np.ndarray:
    """After moves of a group and swaps of two, the best one at a time, until none helps."""
    number = len(goal.target)
    held = np.stack([counts[splits == split].sum(0) for split in range(number)])
    most = max(8, int((SEARCHED / counts.shape[1]) ** 0.5))
    for _ in range(ROUNDS if len(counts) <= LARGE else ROUNDS // 5):
        chosen = [_different(counts, np.flatnonzero(splits == split), most) for split in range(number)]
        now = [goal.cost(split, held[split]) for split in range(number)]
        best = (-1e-6, ())
        for a in range(number):
            for b in range(number):
                if a == b or not len(chosen[a]):
                    continue
                given = counts[chosen[a]]
                gain = goal.cost(a, held[a] - given) + goal.cost(b, held[b] + given) - now[a] - now[b]
                row = int(gain.argmin())
                best = min(best, (gain[row], ((chosen[a][row], b),)), key=lambda found: found[0])
                if a > b or not len(chosen[b]):
                    continue
                change = given[:, None] - counts[chosen[b]]  # [A, B, 1 + S]
                gain = goal.cost(a, held[a] - change) + goal.cost(b, held[b] + change) - now[a] - now[b]
                row, column = np.unravel_index(int(gain.argmin()), gain.shape)
                swap = ((chosen[a][row], b), (chosen[b][column], a))
                best = min(best, (gain[row, column], swap), key=lambda found: found[0])
        if not best[1]:
            break
        for group, split in best[1]:
            held[splits[group]] -= counts[group]
            held[split] += counts[group]
            splits[group] = split
    return splits


def _different(counts: np.ndarray, groups: np.ndarray, most: int) -> np.ndarray:
    """The first of the groups of each kind of counts, and not too many."""
    groups = groups[: 8 * most]
    _, first = np.unique(counts[groups], axis=0, return_index=True)
    return groups[np.sort(first)[:most]]
