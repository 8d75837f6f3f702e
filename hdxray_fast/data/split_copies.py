"""Films that are copies of each other in two parts of a split, under another patient's name perhaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..terminal import are, counted
from .near_duplicates import near_pairs, united
from .splits import SPLITS


def keep_copies_together(
    splits: Sequence[str],
    patients: Sequence[str],
    names: Sequence[str],
    thumbnails: np.ndarray,
    drawn: Sequence[str],
) -> tuple[list[int], list[str]]:
    """Leave no near duplicates on both sides of a drawn split.

    Patients who share a film count as one. Where that one would be in several parts, its images stay in the last of
    train, val and test, and are left out of the others: what was drawn for testing stays what a seed and the manifest
    say. Splits that the manifest gives are not touched, only told of.

    Args:
        splits, patients, names: of each image.
        thumbnails: ``[N, 48, 48] uint8``, of :func:`hdxray_fast.images.perceptual_hash.equalised_thumbnail`.
        drawn: the splits that no image is given in by the manifest.

    Returns:
        Rows that are kept, and notes.
    """
    everything = list(range(len(splits)))
    first, second, _ = near_pairs(thumbnails)
    pairs = [
        (one, other) for one, other in zip(first.tolist(), second.tolist(), strict=True) if splits[one] != splits[other]
    ]
    if not pairs:
        return everything, []
    one, other = pairs[0]
    told = f"{names[one]} ({splits[one]}) and {names[other]} ({splits[other]})"
    movable = [pair for pair in pairs if {splits[row] for row in pair} & set(drawn)]
    notes = []
    if len(movable) < len(pairs):
        notes.append(
            f"warning: {counted(len(pairs) - len(movable), 'pair')} of near duplicates across splits that the manifest "
            f"gives: metrics on these flatter; the first pair of all is {told}"
        )
    if not movable:
        return everything, notes
    people = united(patients, *zip(*movable, strict=True))
    shared = {people[row] for pair in movable for row in pair}
    last: dict[str, int] = {}
    rank = [SPLITS.index(split) for split in splits]
    for person, place in zip(people, rank, strict=True):
        if person in shared:
            last[person] = max(last.get(person, 0), place)
    kept = [row for row, person in enumerate(people) if last.get(person, rank[row]) == rank[row]]
    notes.append(
        f"{are(len(splits) - len(kept), 'image')} left out of train or val, of patients who share a film with a later "
        f"split; the first pair of near duplicates is {told}"
    )
    return kept, notes
