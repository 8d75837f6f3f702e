"""Which images of a manifest are tested on, and how many of them the classifier was trained or validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.seen import SEEN_FILE, Overlap
from ..data.seen_key import KEY_FILE, fits, is_same
from ..data.splits import SPLIT_NAMES, SPLITS, canonical_split, patients_hash
from ..errors import ConfigError, TrainingError
from ..terminal import counted
from .classifier import Classifier
from .label_table import LabelTable
from .labels import check_rows, labels_hash, leave_out_unlabelled, redrawn
from .uncertain import UNCERTAIN, without_uncertain


def overlap_of(
    model: Classifier,
    patients: Sequence[str],
    hashes: Sequence[str] | None = None,
    thumbnails: np.ndarray | None = None,
) -> Overlap | None:
    """Which images the model was trained or validated on; ``None`` where it has no record of that.

    Args:
        model: the classifier.
        patients: of each image, blank where not known.
        hashes: of its stored pixels; left out, before they are read.
        thumbnails: ``[N, 48, 48] uint8``, likewise.
    """
    if model.seen is None:
        return None
    return model.seen.overlap(patients, hashes, thumbnails)


def what_cannot_be_told(model: Classifier) -> str:
    """What of whether the model was trained on something nobody can say here; blank if all can be told."""
    if model.seen is None:
        return f"has no {SEEN_FILE}: whether it was trained on these patients or images cannot be told"
    return model.seen.limits


def refuse_mostly_seen(overlap: Overlap | None, table: LabelTable, split: str, allowed: bool) -> None:
    """Raise a ConfigError if most of what is to be tested on is what the model was trained on."""
    if overlap is not None:
        overlap.refuse_most(canonical_split(split), table.paths, allowed, "metrics")


def part_to_test(
    table: LabelTable, split: str, source: str, model: Classifier, preset: str | None, allowed: bool
) -> LabelTable:
    """The images of a split that may be tested on, or all of them; their uncertain labels count for nothing.

    Args:
        table: as :func:`.read_manifest` gives it.
        split: of which, in any word for it; or ``"all"``.
        source: the manifest's name, for errors.
        model: what is tested.
        preset: of the manifest.
        allowed: test on the training's patients too.

    Raises:
        ConfigError: an image is listed twice, a patient is in two splits, no image is in the split or has a label that
            is known, or training had these patients in other splits.
    """
    table = _chosen_part(table, split, source, model, preset, allowed)
    uncertain = int((table.labels == UNCERTAIN).sum())
    notes = [f"{counted(uncertain, 'uncertain label')} left out: metrics are of what is known"] if uncertain else []
    table = replace(table, labels=without_uncertain(table.labels), notes=[*table.notes, *notes])
    return leave_out_unlabelled(table, source)


def _chosen_part(
    table: LabelTable, split: str, source: str, model: Classifier, preset: str | None, allowed: bool
) -> LabelTable:
    part = _split_to_test(table, split, source, model, preset, allowed)
    if len(part) < len(table):
        words = f"{len(part)} of the {len(table)} images of {source} are tested, those in its split {split!r}"
        part.notes.append(f"{words}; the other {len(table) - len(part)} are left out")
    return part


def _split_to_test(
    table: LabelTable, split: str, source: str, model: Classifier, preset: str | None, allowed: bool
) -> LabelTable:
    name, trained = canonical_split(split), model.config.splits
    if name not in (*SPLITS, "all"):
        words = ", ".join([*SPLITS, "all", *SPLIT_NAMES])
        raise ConfigError(f"split: got {split!r}, accepted are {words}")
    seen = is_same(trained, "patients", patients_hash(table.patients), model.key)
    if name == "all":
        check_rows(replace(table, splits=[""] * len(table)), source)
        if seen and model.seen is None:
            table.notes.append(f"the model was trained on patients of {source}: on 'all' of it the metrics flatter")
        return table
    check_rows(table, source)
    if (again := redrawn(table, trained, source, preset, model.seen, model.key)) is not None:
        same = table.classes != model.config.classes or is_same(trained, "labels", labels_hash(table), model.key)
        if "labels" in trained and not same:
            again.notes.append(f"the labels of {source} are not what they were in training: metrics of its run differ")
        table = again
    elif seen and not allowed:
        raise ConfigError(
            f"split: {source} has the patients that the model was trained on, in other splits; evaluate with those of "
            "the training, or other patients"
        )
    if name in table.splits:
        return table.split(name)
    given = [split for split in SPLITS if split in table.splits]
    why = f"it has {', '.join(given)}" if given else "it has no splits"
    if trained.get("drawn") and fits(trained, model.key) and not seen:
        others = "a table with other patients, or more or fewer of them (Excel drops leading zeros of ids)"
        why += f", and those that training drew were of {others}"
    if not fits(trained, model.key):
        why += f", and whether training drew them here cannot be told without the {KEY_FILE} of the run"
    raise ConfigError(
        f"split: {source} has no image in {name!r}: {why}; give it a column 'split' (or another split; 'all' is right "
        "only for data that the model never saw)"
    )


def refuse_unreadable(bad: int, total: int, limit: float, listed: Path) -> None:
    """Raise a TrainingError if more than a share ``limit`` of the images cannot be read."""
    if bad == total:
        raise TrainingError(f"none of the {total} images could be read; they are listed in {listed}")
    if bad > limit * total:
        raise TrainingError(
            f"{bad} of {total} images cannot be read, more than max_bad_share={limit:g} allows; they are listed in "
            f"{listed}"
        )
