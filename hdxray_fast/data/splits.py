"""Who trains, who validates, who tests: splits by patient, as they are given or drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import ConfigError
from .stratify import deal_out

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


def fill_splits(
    given: Sequence[str],
    patients: Sequence[str],
    val_share: float,
    test_share: float,
    seed: int,
    labels: np.ndarray | None = None,  # [N, C]
) -> list[str]:
    """The manifest's splits, with patients of ``train`` moved to the splits that have none.

    Args:
        given: a split per row, blank where the manifest has none.
        patients: a patient id per row.
        val_share, test_share: for a split that no row is in: of the patients; with ``labels``, of the rows drawn from.
        seed: of the draw.
        labels: 1, 0, or NaN where it is not known, of each row and class. With them shares are exact to within a
            patient, classes are in all splits alike, and rows without any known label do not count. Without them a
            patient's place depends on seed and patient id alone, whoever else is there.

    Raises:
        ConfigError: a share or a split is not accepted, only some rows have one, or nobody would be left to train on.
    """
    for name, share in (("val_share", val_share), ("test_share", test_share)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name}: got {share}, accepted is a share from 0 to below 1")
    splits = [canonical_split(split) for split in given]
    if unknown := [number for number, split in enumerate(splits, start=1) if split not in ("", *SPLITS)]:
        raise ConfigError(f"split: number {unknown[0]} names no split, accepted are {', '.join(SPLITS)}")
    if "" in splits and any(splits):
        raise ConfigError("split: some rows have a split and some have none; give it for all or for none")
    named = set(splits) - {""}
    test = 0.0 if "test" in named else test_share
    val = 0.0 if "val" in named else val_share
    if val + test >= 1:
        raise ConfigError(f"val_share and test_share: {val:g} and {test:g} leave no patient to train on; lower them")
    rows = [row for row, split in enumerate(splits) if split not in ("val", "test")]
    free = [patients[row] for row in rows]
    if labels is None:
        places = {patient: patient_place(patient, seed) for patient in set(free)}
        drawn = {p: "test" if at < test else "val" if at < test + val else "train" for p, at in places.items()}
    else:
        drawn = _stratified(free, np.asarray(labels)[rows], val, test, seed)
    for row in rows:
        splits[row] = drawn[patients[row]]
    return splits


def _stratified(patients: Sequence[str], labels: np.ndarray, val: float, test: float, seed: int) -> dict[str, str]:
    """The split of each patient, by what images and labels they have."""
    ordered = sorted(set(patients), key=lambda patient: (patient_place(patient, seed), patient))
    number = {patient: group for group, patient in enumerate(ordered)}
    known = ~np.isnan(labels).all(axis=1)
    each = np.concatenate([known[:, None], labels == 1, labels == 0], axis=1)  # [N, 1 + 2 C]
    counts = np.zeros((len(ordered), each.shape[1]), np.int64)
    np.add.at(counts, [number[patient] for patient in patients], each)
    # a class is learned from two examples of either kind; where there are few, test goes before val
    wanted = (("train", 1 - val - test, 2, 4), ("val", val, 1, 1), ("test", test, 1, 2))
    names, shares, least, weight = zip(*(split for split in wanted if split[1] > 0), strict=True)
    dealt = deal_out(counts, np.array(shares), np.array(least), np.array(weight))
    return {patient: names[split] for patient, split in zip(ordered, dealt.tolist(), strict=True)}


def drawn_splits(given: Iterable[str], splits: Sequence[str]) -> list[str]:
    """Those of ``val`` and ``test`` that are among ``splits`` and not among the ``given`` ones."""
    before = {canonical_split(split) for split in given}
    return [name for name in ("val", "test") if name in splits and name not in before]


def describe_drawn(
    given: Iterable[str], splits: Sequence[str], preset: str | None, seed: int, patients_known: bool = True
) -> list[str]:
    """What to say of the ``splits`` that are not among those ``given`` by the manifest."""
    given = set(given) - {""}
    if not given:
        what = "split column" if preset is None else "official split"
        return [f"no {what}: splits are drawn by {'patient' if patients_known else 'image'}, --split-seed {seed}"]
    return [
        f"no image is given as {name}: its patients are drawn from train, --split-seed {seed}"
        for name in drawn_splits(given, splits)
    ]


def patients_hash(patients: Iterable[str]) -> str:
    """Of a set of patients, whatever their order."""
    return hashlib.sha256("\0".join(sorted(set(patients))).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def patient_place(patient: str, seed: int) -> float:
    """Where a patient falls in [0, 1): it depends on seed and patient id alone."""
    digest = hashlib.sha256(f"{seed}\0{patient}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
