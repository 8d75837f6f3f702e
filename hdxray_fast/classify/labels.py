"""Labels of radiographs: a manifest in, one checked table out, split by patient and never mixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.listing import wrong_with
from ..data.missing_files import name_meant, none_found
from ..data.prepared.finding import refuse_prepared
from ..data.seen import Seen
from ..data.seen_key import is_same
from ..data.splits import SPLITS, canonical_split, describe_drawn, drawn_splits, fill_splits, patients_hash
from ..errors import ConfigError
from ..terminal import counted, visible
from .label_csv import read_generic
from .label_presets import PRESETS
from .label_table import LabelTable, size_in_words
from .operating_points import read_prevalence
from .renaming import read_renaming
from .uncertain import decided_for_training, without_uncertain

if TYPE_CHECKING:
    from .config import FinetuneConfig
    from .probe_config import ProbeConfig

VALIDATION_LEAST = 10  # images, below which there is a warning
WIDEST_MARGIN = 0.2  # of an AUROC on the test split, above which there is one


def read_labels(
    data: str | Path,
    *,
    images: str | Path | None = None,
    image_column: str | None = None,
    patient_column: str | None = None,
    preset: str | None = None,
    classes: Sequence[str] | None = None,
    multiclass: bool = False,
    uncertain: str | Mapping[str, str] = "ignore",
    val_share: float = 0.1,
    test_share: float = 0.2,
    split_seed: int = 0,
) -> LabelTable:
    """Read a manifest.

    Args:
        data: a CSV with a path column (``image``, ``path``, ...), one column per class with 1, 0, -1 (uncertain) or
            blank (not known), and optionally ``patient`` and ``split``; or what a preset reads.
        images: folder that relative paths start from; the manifest's own by default.
        image_column: the column of the images' files in a generic CSV, where it goes by none of the usual names.
        patient_column: likewise, that of the patients.
        preset: ``"chexpert"``, ``"mimic-cxr"``, ``"nih14"``, ``"rsna"``, ``"vindr"`` or ``"padchest"``: the files of
            these data sets as they are published.
        classes: which classes, in this order; all by default (in a generic CSV: every other column of labels).
        multiclass: exactly one class of each image holds; a generic CSV may then have one column ``label`` of names.
        uncertain: what -1 means in training: ``"ignore"``, ``"zeros"``, ``"ones"``, or one of them per class, as a
            dict or as ``"Edema=ones, Atelectasis=ones"`` (the classes not named are ignored). In validation and test
            it counts for nothing.
        val_share: share of the images in ``val`` if the manifest has no such rows; taken from ``train``, patients
            undivided, every class in its share.
        test_share: likewise for ``test``.
        split_seed: of the splits made here.

    Raises:
        ConfigError: the manifest cannot be read, lacks columns, holds values that are no labels, or has a patient in
            two splits; the message names the file and what is wrong.
        MissingDependencyError: pandas is not installed.
    """
    table = read_manifest(
        data, images=images, image_column=image_column, patient_column=patient_column, preset=preset, classes=classes,
        multiclass=multiclass,
    )  # fmt: skip
    told = uncertain if isinstance(uncertain, str) else dict(uncertain)
    drawn = val_share, test_share, split_seed
    return draw_splits(table, str(data), *drawn, preset=preset, uncertain=told, chosen=classes is not None)


def draw_splits(
    table: LabelTable,
    source: str,
    val_share: float,
    test_share: float,
    split_seed: int,
    *,
    preset: str | None = None,
    uncertain: str | dict = "ignore",
    chosen: bool = False,
    begun: Seen | str | None = None,
) -> LabelTable:
    """A table as :func:`read_manifest` gives it, checked, with a split for every image that has a label.

    Args:
        table: the manifest.
        source: its name, for errors.
        val_share, test_share, split_seed, preset, uncertain: as for :func:`read_labels`; splits do not depend on the
            policy.
        chosen: the classes were picked from more.
        begun: of a run that goes on: the splits that it has, or ``"hashed"`` if it drew them by patient id alone.
    """
    origin = {
        "patients": patients_hash(table.patients),
        "given": patients_hash(_placed(table)),
        "draw": "stratified",
        "labels": labels_hash(table),
        "drawn": drawn_splits(table.splits, SPLITS),
        "seed": split_seed,
        "val_share": val_share,
        "test_share": test_share,
        "uncertain": uncertain,
    }
    if begun == "hashed":
        origin = {name: value for name, value in origin.items() if name not in ("draw", "labels")}
    kept = begun if isinstance(begun, Seen) and begun.is_of(origin["given"]) else None
    whole = decided_for_training(_split(table, origin, preset, kept), uncertain, chosen)
    table = replace(leave_out_unlabelled(whole, source), origin=origin)
    for split in SPLITS:
        if split in whole.splits and split not in table.splits:
            count = whole.splits.count(split)
            raise ConfigError(f"{source}: none of the {count} images in the split {split!r} has a label that is known")
    check_table(table, source)
    return table


def read_manifest(
    data: str | Path,
    *,
    images: str | Path | None = None,
    image_column: str | None = None,
    patient_column: str | None = None,
    preset: str | None = None,
    classes: Sequence[str] | None = None,
    multiclass: bool = False,
    rename: str | Mapping[str, str] | None = None,
) -> LabelTable:
    """As :func:`read_labels`, with the splits as the manifest has them (blank where it has none), unchecked.

    Uncertain labels are -1. ``rename`` gives classes of the table other names, see :func:`.read_renaming`; ``classes``
    are the new ones then.
    """
    path = Path(data)
    if not path.exists():
        accepted = "give a CSV manifest, or the folder that the preset reads"
        raise ConfigError(f"data: {path} {wrong_with(path, accepted, name_meant)}")
    refuse_prepared(path, "labels")
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset: got {preset!r}, accepted are {', '.join(PRESETS)}")
    if preset is not None and multiclass:
        raise ConfigError("multiclass: the classes of published data sets may hold together; leave out multiclass")
    columns = {"image_column": image_column, "patient_column": patient_column}
    if preset and (given := [name for name, column in columns.items() if column is not None]):
        raise ConfigError(f"{given[0]}: the preset {preset!r} knows its columns; leave it out, or leave out preset")
    root = Path(images) if images else None
    renamed = read_renaming(rename, classes)
    own = {new: name for name, new in renamed.items()}
    wanted = None if classes is None else [own.get(name, name) for name in classes]
    if preset:
        table = PRESETS[preset](path, root, classes=wanted)
    else:
        table = read_generic(path, root, classes=wanted, multiclass=multiclass, **columns)
    if renamed:
        table = replace(table, classes=[renamed.get(name, name) for name in table.classes])
    if not len(table):
        raise ConfigError(f"data: {path} holds no usable row ({'; '.join(table.notes) or 'it is empty'})")
    return replace(table, splits=[canonical_split(split) for split in table.splits])


def leave_out_unlabelled(table: LabelTable, source: str) -> LabelTable:
    """The images with at least one label that is known; how many were left out is noted."""
    known = ~np.isnan(table.labels).all(axis=1)
    if not known.any():
        raise ConfigError(f"{source}: no image has a label that is known (blank, or uncertain and ignored)")
    if known.all():
        return table
    kept = table.rows(np.flatnonzero(known))
    left_out = counted(int((~known).sum()), "image")
    return replace(kept, notes=[*table.notes, f"left out: {left_out} without any known label"])


def redrawn(
    table: LabelTable,
    origin: dict,
    source: str,
    preset: str | None = None,
    seen: Seen | None = None,
    key: bytes | None = None,
) -> LabelTable | None:
    """The table with the splits that training had from the same manifest, or ``None`` if it is another.

    Args:
        table: as :func:`read_manifest` gives it.
        origin: of the table that was trained on. The manifest is the same if it has the same patients, in the same
            splits where it gives any.
        source: the manifest's name, for errors.
        preset: of the manifest, for the note on what was drawn.
        seen: what the classifier keeps of the splits. Without it they are drawn again, for which the labels must be
            those of training.
        key: of the classifier's run, with which ``origin`` was made.

    Raises:
        ConfigError: splits were drawn, and neither the record nor the same labels are there.
    """
    given = patients_hash(_placed(table))
    if not is_same(origin, "given", given, key):
        return None
    if seen is not None and not seen.is_of(given):
        seen = None
    drawn = not {"val", "test"} <= set(table.splits)
    if drawn and seen is None and "draw" in origin and not is_same(origin, "labels", labels_hash(table), key):
        raise ConfigError(
            f"{source}: its splits cannot be drawn as in training: the labels are others (or the classes), "
            "and the model's folder has lost its record of patients; evaluate with the labels of training"
        )
    return _split(table, origin, preset, seen)


def _split(table: LabelTable, origin: dict, preset: str | None, kept: Seen | None = None) -> LabelTable:
    """The table with a split for every image, kept or by the draw that ``origin`` states; notes on what was drawn."""
    found = kept.splits_of(table.patients) if kept else {}
    if found.keys() >= set(table.patients):
        splits = [found[patient] for patient in table.patients]
    else:
        labels = (
            without_uncertain(table.labels) if "draw" in origin else None
        )  # of models and runs from before classes had a say
        shares = origin["val_share"], origin["test_share"]
        splits = fill_splits(table.splits, table.patients, *shares, origin["seed"], labels)
    drawn = describe_drawn(table.splits, splits, preset, origin["seed"], table.patients_known)
    return replace(table, splits=splits, notes=[*table.notes, *drawn])


def labels_hash(table: LabelTable) -> str:
    """Of all that a draw depends on beside its shares and seed, whatever the order of the rows."""
    rows = zip(table.patients, table.labels, strict=True)
    told = sorted(f"{patient}\0{np.nan_to_num(labels, nan=-1).astype(np.int8).tolist()}" for patient, labels in rows)
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _placed(table: LabelTable) -> list[str]:
    """Each patient with the split that the manifest gives."""
    return [f"{patient}\0{split}" for patient, split in zip(table.patients, table.splits, strict=True)]


def check_table(table: LabelTable, source: str, least: int = 2) -> None:
    """Raise a ConfigError naming ``source`` for what :func:`check_rows` refuses, or a class that cannot be learned:
    one with fewer than ``least`` positive or negative training images."""
    check_rows(table, source)
    train = table.split("train")
    for split in SPLITS:
        if split not in table.splits:
            none = table.origin.get(f"{split}_share") == 0
            why = f" and {split}_share is 0: raise it" if none else "; there are too few patients to split"
            raise ConfigError(f"{source}: no image is in the split {split!r}{why}")
    for column, name in enumerate(table.classes):
        values = train.labels[:, column]
        positive, negative = int((values == 1).sum()), int((values == 0).sum())
        if min(positive, negative) < least:
            hint = "remove its rows" if table.multiclass else "leave it out with classes (--classes)"
            if np.isnan(values).any() and negative < least and not table.multiclass:
                hint = f"a blank cell says 'not known': write 0 where the finding is not there, or {hint}"
            raise ConfigError(
                f"{source}: class {name!r} has {positive} positive and {negative} negative training images, needed are "
                f"{least} of each; {hint}"
            )
    if table.multiclass and not np.allclose(np.nansum(table.labels, axis=1), 1):
        row = int(np.flatnonzero(~np.isclose(np.nansum(table.labels, axis=1), 1))[0])
        raise ConfigError(f"{source}: {table.place(row)} belongs to no class or to several, and multiclass is set")


def check_rows(table: LabelTable, source: str) -> None:
    """Raise a ConfigError naming ``source`` for a patient in two splits, or an image that is listed twice."""
    people: dict[str, int] = {}
    files: dict[str, int] = {}
    for row, (patient, path) in enumerate(zip(table.patients, table.paths, strict=True)):
        first = people.setdefault(patient, row)
        if table.splits[first] != table.splits[row]:
            both = " and ".join(f"{table.place(each)} ({table.splits[each]})" for each in (first, row))
            raise ConfigError(f"{source}: {both} are of one patient, who is in two splits so; split by patient")
        if (first := files.setdefault(path, row)) != row:
            where = f"{table.place(first)} and {table.place(row)} name one file: it" if table.lines else path
            raise ConfigError(f"{source}: {where} is listed more than once")


def require_files(table: LabelTable, source: str, images: str | Path | None = None) -> None:
    """Note how many files are missing; raise a ConfigError if that is all of them. ``images`` is where the names of
    ``source`` begin."""
    missing = [path for path in table.paths if not Path(path).is_file()]
    if len(missing) == len(table.paths):
        raise none_found(missing, source, images)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        table.notes.append(
            f"{len(missing)} of these {counted(len(table), 'image')} {verb} missing and left out of what follows, the "
            f"first is {missing[0]}"
        )


def describe_labels(table: LabelTable) -> str:
    """Images, patients and class balance of each split, and what was noted on reading, to show before training."""
    width = max(len(name) for name in ("class", *table.classes))
    counts = []
    for split in SPLITS:
        part = table.split(split)
        counts.append(size_in_words(len(part), part.patient_count).replace(" of ", ", "))
    room = max(28, *(len(count) + 2 for count in counts))
    lines = [f"{'':{width}}  {''.join(word.rjust(room) for word in line)}" for line in (SPLITS, counts)]
    balance = {(row["split"], row["class"]): row for row in table.balance()}
    for name in table.classes:
        cells = []
        for split in SPLITS:
            row = balance[split, name]
            unknown = f" ?{row['unknown']}" if row["unknown"] else ""
            cells.append(f"+{row['positive']} -{row['negative']}{unknown}".rjust(room))
        lines.append(f"{name:{width}}  {''.join(cells)}")
    lines.append("(+ positive, - negative, ? not known)")
    return "\n".join([*lines, *map(visible, told_of(table))])


def told_of(table: LabelTable) -> list[str]:
    """What was noted on reading, and warnings of splits that are too small: a sentence each."""
    return [*table.notes, *thin_validation(table), *thin_test(table)]


def one_sided(table: LabelTable) -> list[str]:
    """Classes without a positive or without a negative image: no threshold can be chosen on these."""
    kinds = [(table.labels == value).any(axis=0) for value in (1, 0)]  # [C] bool each
    return [name for name, both in zip(table.classes, kinds[0] & kinds[1], strict=True) if not both]


def thin_validation(table: LabelTable) -> list[str]:
    """Warnings where validation is too small, or too one-sided, to choose by."""
    val = table.split("val")
    found = []
    if len(val) < VALIDATION_LEAST:
        few = counted(len(val), "image")
        found.append(f"warning: val has {few}, few to choose by; set --val-share, or give more of them")
    if names := one_sided(val):
        what = "it has no say there" if table.multiclass else "the threshold stays at 0.5"
        found.append(f"warning: val has no positive or no negative of {', '.join(names)}: {what}")
    return found


def thin_test(table: LabelTable) -> list[str]:
    """Warnings where the test split is too small, or too one-sided, for its metrics to say anything."""
    test = table.split("test")
    without = one_sided(test)
    found = [f"warning: test has no positive or no negative of {', '.join(without)}: no AUROC there"] if without else []
    counts = {
        name: (int((test.labels[:, column] == 1).sum()), int((test.labels[:, column] == 0).sum()))
        for column, name in enumerate(table.classes)
        if name not in without
    }
    wide = {name: margin for name, pair in counts.items() if (margin := auroc_margin(*pair)) > WIDEST_MARGIN}
    if wide:
        name = max(wide, key=wide.__getitem__)
        others = f", and those of {counted(len(wide) - 1, 'other class')} are too few as well" if len(wide) > 1 else ""
        found.append(
            f"warning: test is too small to say much: with {counts[name][0]} positive and {counts[name][1]} negative "
            f"images of {name} an AUROC of 0.8 is known to ± {wide[name]:.2f}{others}"
        )
    return found


def auroc_margin(positives: int, negatives: int, auroc: float = 0.8) -> float:
    """Half of the 95 % interval that so many images leave to an AUROC (Hanley and McNeil 1982)."""
    both = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)  # two positives above a negative; one above two negatives
    spread = (positives - 1) * (both[0] - auroc**2) + (negatives - 1) * (both[1] - auroc**2)
    return 1.96 * ((auroc * (1 - auroc) + spread) / (positives * negatives)) ** 0.5


def refuse_duplicates(table: LabelTable, hashes: Iterable[str], source: str) -> None:
    """Raise a ConfigError if the same pixels are in two splits; ``hashes`` are those of the rows, blank if unknown."""
    seen: dict[str, tuple[str, str]] = {}
    for path, split, key in zip(table.paths, table.splits, hashes, strict=True):
        if not key:
            continue
        first_path, first_split = seen.setdefault(key, (path, split))
        if first_split != split:
            raise ConfigError(
                f"{source}: {first_path} ({first_split}) and {path} ({split}) hold the same pixels; a duplicate on "
                "both sides of a split makes the result worthless"
            )


def labels_of(config: ProbeConfig | FinetuneConfig, begun: Seen | str | None = None) -> LabelTable:
    """The labels that ``config`` names, split; ``begun`` is as for :func:`draw_splits`."""
    table = read_manifest(
        config.data,
        images=config.images,
        image_column=config.image_column,
        patient_column=config.patient_column,
        preset=config.preset,
        classes=config.classes,
        multiclass=config.multiclass,
    )
    read_prevalence(config.prevalence, table.classes, config.multiclass)
    drawn = config.val_share, config.test_share, config.split_seed
    told = {"preset": config.preset, "uncertain": config.uncertain, "chosen": config.classes is not None}
    return draw_splits(table, str(config.data), *drawn, begun=begun, **told)
