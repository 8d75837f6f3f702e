"""Which hashes of a million are alike: few are compared each with each; of many, only those that share a key.

A key is a word of bits, each of which cuts the collection in halves, so that two films which have nothing to do with
each other rarely share one, and copies nearly always share one of several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

LOOKS = 20_000  # most pairs proposed, and half as many as hashes in addition
ALIKE = 0.4  # correlation of two hashes below which they are not proposed
EACH_WITH_EACH = 1 << 15  # hashes up to which all pairs are compared
KEYS, MOST_KEYS = 16, 96  # for a million hashes, and for few, where more cost no more
SPREAD = 40  # directions that the bits of the keys are drawn from
BLOCK = 1 << 20  # pairs at once
SCORED = 1 << 16  # of these, whose hashes are looked up at once

Scored = tuple[np.ndarray, np.ndarray, np.ndarray]  # earlier row, later row, correlation


def candidates(hashes: np.ndarray, boundary: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows that are worth a look, the earlier row first; with a ``boundary``, of a row on either side of it.

    Args:
        hashes: ``[N, 90] int8``, of :func:`hdxray_fast.images.perceptual_hash.perceptual_hash`.
        boundary: number of rows of the first of two collections, where ``hashes`` are those of both.

    Returns:
        Two ``[P] int64``; ``P`` is at most 20,000 and half of ``N``. Of so few all pairs are returned.
    """
    count = len(hashes)
    pairs = count * (count - 1) // 2 if boundary is None else boundary * (count - boundary)
    if pairs <= LOOKS:
        later = np.arange(count) > np.arange(count)[:, None]
        if boundary is not None:
            later[boundary:] = later[:, :boundary] = False
        return np.nonzero(later)
    values = _whitened(hashes)
    if count <= EACH_WITH_EACH:
        compare = _each_with_each(_unit(values, slice(None)), boundary)
    else:
        compare = _sharing_keys(values, boundary)
    return _most_alike(compare, count, LOOKS + count // 2)


def _whitened(hashes: np.ndarray) -> np.ndarray:
    """Hashes ``[N, 90] float32`` about their mean, negatives turned over, each coefficient with deviation 1.

    What all films of a collection share says nothing about two of them.
    """
    values = hashes.astype(np.float32)
    typical = np.linalg.eigh(values.T @ values)[1][:, -1]  # the same for films and for their negatives
    values *= np.where(values @ typical < 0, -1, 1).astype(np.float32)[:, None]
    values -= values.mean(0)
    values /= np.maximum(values.std(0), 1e-3)
    return values


def _unit(values: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
    """Some of the hashes with length 1: all of a million at once take as much memory again."""
    some = values[rows]
    return some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-6)


def _correlation(values: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of pairs of rows, ``[P] float32``."""
    found = np.empty(len(one), np.float32)
    for start in range(0, len(one), SCORED):
        part = slice(start, start + SCORED)
        found[part] = np.einsum("pk,pk->p", _unit(values, one[part]), _unit(values, other[part]))
    return found


def _each_with_each(unit: np.ndarray, boundary: int | None) -> Iterator[Scored]:
    count = len(unit)
    lines = max(1, BLOCK // count)
    for start in range(0, count if boundary is None else boundary, lines):
        stop = min(start + lines, count if boundary is None else boundary)
        left = start + 1 if boundary is None else boundary  # of the rows that may be the later one
        alike = unit[start:stop] @ unit[left:].T
        first, second = np.nonzero(alike > ALIKE)
        scores = alike[first, second]
        first, second = first + start, second + left
        later = second > first
        yield first[later], second[later], scores[later]


def _sharing_keys(values: np.ndarray, boundary: int | None) -> Iterator[Scored]:
    """Pairs that share a key, key by key. A bit says on which side of the median a film lies, along one of the
    directions in which films differ most: those that trimming changes least."""
    count = len(values)
    bits = int(np.clip(np.ceil(np.log2(count)), 8, 24))
    directions = np.linalg.eigh(values.T @ values)[1][:, ::-1][:, :SPREAD]
    sides = values @ directions
    sides = sides > np.median(sides, axis=0)
    draw = np.random.default_rng(0)
    for _ in range(int(np.clip((KEYS << 20) // count, KEYS, MOST_KEYS))):
        key = sides[:, draw.choice(SPREAD, bits, replace=False)] @ (1 << np.arange(bits, dtype=np.uint32))
        order = np.argsort(key, kind="stable")
        key = key[order]
        for gap in range(1, count):  # neighbours in the sorted list, then the next but one, while keys are equal
            places = np.flatnonzero(key[gap:] == key[:-gap])
            if not len(places):
                break
            first, second = order[places], order[places + gap]
            if boundary is not None:
                across = (first < boundary) != (second < boundary)
                first, second = first[across], second[across]
            for start in range(0, len(first), BLOCK):
                one, other = first[start : start + BLOCK], second[start : start + BLOCK]
                yield np.minimum(one, other), np.maximum(one, other), _correlation(values, one, other)


def _most_alike(found: Iterable[Scored], count: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Of all pairs the ``limit`` whose hashes correlate best, each once, in order."""
    names, scores, floor = np.empty(0, np.int64), np.empty(0, np.float32), ALIKE
    waiting, kept = [], 0
    for first, second, alike in found:
        good = alike > floor
        waiting.append((first[good] * count + second[good], alike[good]))
        kept += int(good.sum())
        if kept > 4 * limit:
            names, scores, floor = _best([(names, scores), *waiting], limit, floor)
            waiting, kept = [], 0
    names, scores, _ = _best([(names, scores), *waiting], limit, floor)
    return np.divmod(names, count)


def _best(parts: list[tuple[np.ndarray, np.ndarray]], limit: int, floor: float) -> tuple[np.ndarray, np.ndarray, float]:
    names, place = np.unique(np.concatenate([names for names, _ in parts]), return_index=True)
    scores = np.concatenate([scores for _, scores in parts])[place]
    if len(names) <= limit:
        return names, scores, floor
    taken = np.sort(np.argpartition(-scores, limit)[:limit])
    return names[taken], scores[taken], float(scores[taken].min())
