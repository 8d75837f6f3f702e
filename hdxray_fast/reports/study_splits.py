"""Which studies train, validate and test: as given, as a model has them, or drawn by patient."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..data.seen import Seen
from ..data.splits import canonical_split, drawn_splits, fill_splits, patients_hash

MADE_UP = re.compile(r"(row|train|val|test)-\d+")  # ids of studies that have none: a place in a file, and nobody


def identities(patients: Sequence[str]) -> list[str]:
    """Patients, blank where the id says nothing of who that is."""
    return ["" if MADE_UP.fullmatch(patient) else patient for patient in patients]


@dataclass(frozen=True)
class StudySplits:
    """Splits of studies, and how they came about.

    Attributes:
        splits: of each study.
        origin: hashes of the patients and of the splits given, rule, seed and shares, as a model keeps them.
        drawn: those of ``val`` and ``test`` that are not given.
        known: patients that the model's record has.
        notes: what was drawn, and whether the table is another than the model's.
    """

    splits: list[str]
    origin: dict
    drawn: list[str] = field(default_factory=list)
    known: int = 0
    notes: list[str] = field(default_factory=list)


def split_studies(
    given: Sequence[str],
    patients: Sequence[str],
    source: str,
    val_share: float,
    test_share: float,
    split_seed: int,
    record: Seen | None = None,
) -> StudySplits:
    """A split for every study that is listed.

    Args:
        given: of each, blank where there is none.
        patients: of each.
        source: name of the table, for notes.
        val_share, test_share, split_seed: of the draw, in which a patient's place depends on seed and id alone.
        record: of a model: whom it has seen stays in its split, where the table gives no other.

    Raises:
        ConfigError: see :func:`hdxray_fast.data.splits.fill_splits`.
    """
    given = [canonical_split(split) for split in given]
    placed = [f"{patient}\0{split}" for patient, split in zip(patients, given, strict=True)]
    origin = {
        "patients": patients_hash(patients),
        "given": patients_hash(placed),
        "draw": "by patient id",
        "seed": split_seed,
        "val_share": val_share,
        "test_share": test_share,
    }
    splits = fill_splits(given, patients, val_share, test_share, split_seed)
    drawn, notes = drawn_splits(given, splits), []
    if drawn:
        notes.append(f"no study is given as {' or '.join(drawn)}: drawn by patient, split_seed {split_seed}")
    same = record is not None and record.is_of(origin["given"])
    found = {} if record is None else record.splits_of(patients if same else identities(patients))
    known = len(set(patients)) if same else len(found)
    if drawn:
        kept = {patient: own for patient, own in found.items() if own in ("train", *drawn)}
        splits = [
            split if before in ("val", "test") else kept.get(patient, split)
            for before, patient, split in zip(given, patients, splits, strict=True)
        ]
        if found and not same:
            notes.append(
                f"{source} is another table than the model was trained on: {known} of its {len(set(patients))} "
                "patients are known and stay in the model's splits"
            )
    return StudySplits(splits, origin, drawn, known, notes)
