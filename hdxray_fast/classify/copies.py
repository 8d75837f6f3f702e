"""Films of the training that are copies of validation or test films, under another patient's name perhaps."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.near_duplicates import near_pairs, united
from ..data.prepared.duplicates import thumbnails_of
from ..data.prepared.reading import PreparedSubset
from ..data.splits import SPLITS
from .label_table import LabelTable


def keep_copies_together(
    table: LabelTable, images: PreparedSubset, drawn: Sequence[str]
) -> tuple[LabelTable, PreparedSubset, list[str]]:
    """Leave no near duplicates on both sides of a drawn split.

    Patients who share a film count as one. Where that one would be in several parts, its images stay in the last of
    train, val and test, and are left out of the others: what was drawn for testing stays what a seed and the manifest
    say. Splits that the manifest gives are not touched, only told of.

    Args:
        table: labels.
        images: of its rows, in its order.
        drawn: the splits that no image is given in by the manifest.

    Returns:
        Table and images without what is left out, and notes.
    """
    first, second, _ = near_pairs(thumbnails_of(images))
    pairs = [
        (one, other)
        for one, other in zip(first.tolist(), second.tolist(), strict=True)
        if table.splits[one] != table.splits[other]
    ]
    if not pairs:
        return table, images, []
    one, other = pairs[0]
    told = f"{table.paths[one]} ({table.splits[one]}) and {table.paths[other]} ({table.splits[other]})"
    movable = [pair for pair in pairs if {table.splits[row] for row in pair} & set(drawn)]
    notes = []
    if len(movable) < len(pairs):
        notes.append(
            f"warning: {len(pairs) - len(movable)} pairs of near duplicates lie across splits that the manifest gives, "
            f"and flatter the metrics; the first pair of all is {told}"
        )
    if not movable:
        return table, images, notes
    people = united(table.patients, *zip(*movable, strict=True))
    shared = {people[row] for pair in movable for row in pair}
    last: dict[str, int] = {}
    rank = [SPLITS.index(split) for split in table.splits]
    for person, place in zip(people, rank, strict=True):
        if person in shared:
            last[person] = max(last.get(person, 0), place)
    kept = [row for row, person in enumerate(people) if last.get(person, rank[row]) == rank[row]]
    notes.append(
        f"{len(table) - len(kept)} images are left out of train or val: their patients share a film with a later "
        f"split; the first pair of near duplicates is {told}"
    )
    return table.rows(kept), images.subset(kept), notes
