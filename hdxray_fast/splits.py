"""Who trains, who validates, who tests: splits by patient, the same wherever and whenever they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from .labels import LabelTable

SPLIT_COLUMNS = ("split", "fold")
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "training": "train",
    "validate": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}


def canonical_split(name: str) -> str:
    """``train``, ``val`` or ``test`` for the words that mean them; other words as they are, in lower case."""
    plain = name.strip().lower()
    return SPLIT_NAMES.get(plain, plain)


def fill_splits(table: LabelTable, val_share: float, test_share: float, seed: int) -> list[str]:
    """The manifest's splits, with patients of ``train`` moved to the splits that have none."""
    for name, share in (("val_share", val_share), ("test_share", test_share)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name}: got {share}, accepted is a share from 0 to below 1")
    splits = [canonical_split(split) for split in table.splits]
    if unknown := sorted(set(splits) - {"", *SPLITS}):
        raise ConfigError(f"split: got {unknown[0]!r}, accepted are {', '.join(SPLITS)}")
    if "" in splits and any(splits):
        raise ConfigError("split: some rows have a split and some have none; give it for all or for none")
    given = set(splits) - {""}
    test = 0.0 if "test" in given else test_share
    val = 0.0 if "val" in given else val_share
    if val + test >= 1:
        raise ConfigError(f"val_share and test_share: {val:g} and {test:g} leave no patient to train on; lower them")
    places = {patient: _uniform(patient, seed) for patient in set(table.patients)}
    made = []
    for split, patient in zip(splits, table.patients, strict=True):
        if split in ("val", "test"):
            made.append(split)
        else:
            place = places[patient]
            made.append("test" if place < test else "val" if place < test + val else "train")
    return made


def drawn_splits(given: Iterable[str], splits: Sequence[str]) -> list[str]:
    """Those of ``val`` and ``test`` that are among ``splits`` and not among the ``given`` ones."""
    before = {canonical_split(split) for split in given}
    return [name for name in ("val", "test") if name in splits and name not in before]


def describe_drawn(table: LabelTable, splits: Sequence[str], preset: str | None, seed: int) -> list[str]:
    """What to say of the splits that the manifest does not have."""
    given = set(table.splits) - {""}
    if not given:
        what = "split column" if preset is None else "official split"
        return [f"no {what}: splits are drawn by patient, seed {seed}"]
    return [
        f"no image is given as {name}: its patients are drawn from train, seed {seed}"
        for name in drawn_splits(given, splits)
    ]


def take_fraction(table: LabelTable, share: float, seed: int) -> LabelTable:
    """All of ``val`` and ``test``, and the training images of a share of the patients (at least two per class kept).

    Patients are taken in an order that depends on seed and patient id alone, so that a smaller share is part of a
    larger one.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"label_fraction: got {share}, accepted is a share above 0 and up to 1")
    train = [i for i, split in enumerate(table.splits) if split == "train"]
    patients = sorted({table.patients[i] for i in train}, key=lambda patient: _uniform(patient, seed + 1))
    wanted = set(patients[: max(1, round(share * len(patients)))])
    for column in range(len(table.classes)):
        for value in (1, 0):
            holders = {table.patients[i] for i in train if table.labels[i, column] == value}
            wanted.update([patient for patient in patients if patient in holders][:2])
    return table.rows([i for i, s in enumerate(table.splits) if s != "train" or table.patients[i] in wanted])


def patients_hash(patients: Iterable[str]) -> str:
    """Of a set of patients, whatever their order."""
    return hashlib.sha256("\0".join(sorted(set(patients))).encode()).hexdigest()[:16]


def _uniform(patient: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\0{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
