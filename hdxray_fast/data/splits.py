"""Who trains, who validates, who tests: splits by patient, the same wherever and whenever they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ..errors import ConfigError

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
    given: Sequence[str], patients: Sequence[str], val_share: float, test_share: float, seed: int
) -> list[str]:
    """The manifest's splits, with patients of ``train`` moved to the splits that have none.

    Args:
        given: a split per row, blank where the manifest has none.
        patients: a patient id per row.
        val_share, test_share: of the patients, for a split that no row is in.
        seed: of the draw.

    Raises:
        ConfigError: a share or a split is not accepted, only some rows have one, or nobody would be left to train on.
    """
    for name, share in (("val_share", val_share), ("test_share", test_share)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name}: got {share}, accepted is a share from 0 to below 1")
    splits = [canonical_split(split) for split in given]
    if unknown := sorted(set(splits) - {"", *SPLITS}):
        raise ConfigError(f"split: got {unknown[0]!r}, accepted are {', '.join(SPLITS)}")
    if "" in splits and any(splits):
        raise ConfigError("split: some rows have a split and some have none; give it for all or for none")
    named = set(splits) - {""}
    test = 0.0 if "test" in named else test_share
    val = 0.0 if "val" in named else val_share
    if val + test >= 1:
        raise ConfigError(f"val_share and test_share: {val:g} and {test:g} leave no patient to train on; lower them")
    places = {patient: patient_place(patient, seed) for patient in set(patients)}
    made = []
    for split, patient in zip(splits, patients, strict=True):
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


def describe_drawn(given: Iterable[str], splits: Sequence[str], preset: str | None, seed: int) -> list[str]:
    """What to say of the ``splits`` that are not among those ``given`` by the manifest."""
    given = set(given) - {""}
    if not given:
        what = "split column" if preset is None else "official split"
        return [f"no {what}: splits are drawn by patient, seed {seed}"]
    return [
        f"no image is given as {name}: its patients are drawn from train, seed {seed}"
        for name in drawn_splits(given, splits)
    ]


def patients_hash(patients: Iterable[str]) -> str:
    """Of a set of patients, whatever their order."""
    return hashlib.sha256("\0".join(sorted(set(patients))).encode()).hexdigest()[:16]


def patient_place(patient: str, seed: int) -> float:
    """Where a patient falls in [0, 1): it depends on seed and patient id alone."""
    digest = hashlib.sha256(f"{seed}\0{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
