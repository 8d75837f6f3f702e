"""Readers of published label files, each as its authors distribute it, and of a generic CSV.

Every reader returns a LabelTable whose labels are 1, 0, -1 (uncertain) or NaN (not known) and whose splits are those
of the data set, or blank.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .errors import ConfigError
from .labels import PATIENT_COLUMNS, LabelTable, find_column, import_pandas
from .prepare import PATH_COLUMNS

CHEXPERT = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
NIH14 = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
PADCHEST_FRONTAL = ("PA", "AP", "AP_horizontal", "AP-horizontal")
PADCHEST_UNUSABLE = frozenset({"exclude", "suboptimal study"})
PADCHEST_NO_CLASS = frozenset({"", "normal", "unchanged"})  # "unchanged" speaks of an earlier study
NOT_NUMBERS = frozenset({"nan", "na", "n/a", "none", "null", "inf", "-inf", "#n/a"})
PADCHEST_LEAST = 50  # images of a label that becomes a class by default


def read_generic(
    path: Path, images: Path | None, *, classes: Sequence[str] | None = None, multiclass: bool = False
) -> LabelTable:
    """A CSV with a path column, one column per class, and optionally patient and split columns."""
    frame = _read_csv(path)
    image = _require(frame, path, PATH_COLUMNS, "the image's path")
    patient = find_column(frame.columns, PATIENT_COLUMNS)
    split = find_column(frame.columns, ("split", "Split", "fold"))
    for column in filter(None, (image, patient)):
        if frame[column].isna().any():
            raise ConfigError(f"{path}: row {_first(frame[column].isna())} has nothing in the column {column!r}")
    if multiclass and "label" in frame.columns:
        names = frame["label"].astype("string")
        if names.isna().any():
            raise ConfigError(f"{path}: row {_first(names.isna())} has no label")
        classes = list(classes) if classes else sorted(names.unique())
        if foreign := sorted(set(names) - set(classes)):
            raise ConfigError(f"{path}: label {foreign[0]!r} is none of the classes {', '.join(classes)}")
        labels = np.stack([(names == name).to_numpy(np.float32) for name in classes], axis=1)
    else:
        others = [name for name in frame.columns if name not in (image, patient, split)]
        if classes is None:
            classes = [name for name in others if _looks_like_labels(frame[name])]
            if not classes:
                raise ConfigError(f"{path}: has no column of labels beside {', '.join(map(str, frame.columns))}")
        labels = _labels(frame, path, classes)
    paths = [str(_under(images or path.parent, name)) for name in frame[image].astype(str)]
    return LabelTable(
        paths,
        labels,
        list(classes),
        _strings(frame[patient]) if patient else list(paths),
        _strings(frame[split].fillna("")) if split else [""] * len(frame),
        multiclass,
        [] if patient else ["no patient column: every image counts as a patient of its own"],
    )


def read_chexpert(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """``train.csv`` or ``valid.csv`` of CheXpert, or the folder that holds both; frontal views."""
    pandas = import_pandas()
    files = [path] if path.is_file() else [path / name for name in ("train.csv", "valid.csv") if (path / name).exists()]
    if not files:
        raise ConfigError(f"data: {path} holds neither train.csv nor valid.csv of CheXpert")
    frame = pandas.concat([_read_csv(file) for file in files], ignore_index=True)
    _require_all(frame, path, ("Path", *(classes or CHEXPERT)))
    frame, notes = _frontal(frame, "Frontal/Lateral", ("Frontal",))
    root = images or files[0].parent
    patients = [re.search(r"patient\d+", name) for name in frame["Path"]]
    if None in patients:
        raise ConfigError(f"{path}: {frame['Path'].iloc[patients.index(None)]} names no patient (patient00001/...)")
    classes = list(classes or CHEXPERT)
    return LabelTable(
        # the first folder, CheXpert-v1.0-small, is often where the CSV itself lies
        [str(_existing(root / name, root.parent / name, root / name.partition("/")[2])) for name in frame["Path"]],
        _labels(frame, path, classes, blank=0.0),  # by its authors a blank is a negative
        classes,
        [match.group() for match in patients],
        ["val" if "/valid/" in name else "test" if "/test/" in name else "train" for name in frame["Path"]],
        notes=notes,
    )


def read_mimic(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """The folder of MIMIC-CXR-JPG: labels per study joined to images, official split and views; frontal views."""
    root = path if path.is_dir() else path.parent
    labels = _read_csv(path if path.is_file() else _one(root, "mimic-cxr-*-chexpert.csv*"))
    splits = _read_csv(_one(root, "mimic-cxr-*-split.csv*"))
    views = _read_csv(_one(root, "mimic-cxr-*-metadata.csv*"))
    classes = list(classes or CHEXPERT)
    _require_all(labels, path, ("subject_id", "study_id", *classes))
    _require_all(splits, path, ("dicom_id", "study_id", "subject_id", "split"))
    _require_all(views, path, ("dicom_id", "ViewPosition"))
    frame = splits.merge(views[["dicom_id", "ViewPosition"]], on="dicom_id", how="left")
    joined = frame.merge(labels[["subject_id", "study_id", *classes]], on=["subject_id", "study_id"], how="inner")
    notes = [f"{len(frame) - len(joined)} images of studies without labels"] if len(frame) > len(joined) else []
    frame, more = _frontal(joined, "ViewPosition", ("PA", "AP"))
    base = images or root
    paths = [
        str(_existing(base / "files" / tail, base / tail))
        for tail in (
            f"p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg"
            for subject, study, dicom in zip(frame["subject_id"], frame["study_id"], frame["dicom_id"], strict=True)
        )
    ]
    return LabelTable(
        paths,
        _labels(frame, path, classes, blank=0.0),  # the labels are CheXpert's, and so is the meaning of a blank
        classes,
        _strings(frame["subject_id"]),
        _strings(frame["split"]),
        notes=notes + more,
    )


def read_nih14(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """``Data_Entry_2017.csv`` of ChestX-ray14 (or its folder), with ``train_val_list.txt`` and ``test_list.txt``."""
    file = path if path.is_file() else _one(path, "Data_Entry_2017*.csv")
    frame = _read_csv(file)
    _require_all(frame, file, ("Image Index", "Finding Labels", "Patient ID"))
    classes = list(classes or NIH14)
    findings = [set(str(value).split("|")) for value in frame["Finding Labels"]]
    if foreign := sorted(set().union(*findings) - {*NIH14, "No Finding"}) if findings else []:
        raise ConfigError(f"{file}: finding {foreign[0]!r} is none of ChestX-ray14's")
    _check_classes(classes, NIH14, file)
    where = {found.name: found for found in (images or file.parent).rglob("*.png")}
    splits, notes = [""] * len(frame), []
    lists = {name: file.parent / f"{name}_list.txt" for name in ("train_val", "test")}
    if all(found.exists() for found in lists.values()):
        test = set(lists["test"].read_text().split())
        splits = ["test" if name in test else "train" for name in frame["Image Index"]]
    else:
        notes.append("train_val_list.txt and test_list.txt are not beside the CSV: split by patient instead")
    return LabelTable(
        [str(where.get(name, (images or file.parent) / "images" / name)) for name in frame["Image Index"]],
        np.array([[float(name in found) for name in classes] for found in findings], np.float32).reshape(
            -1, len(classes)
        ),
        classes,
        _strings(frame["Patient ID"]),
        splits,
        notes=notes,
    )


def read_rsna(path: Path, images: Path | None, **_) -> LabelTable:
    """``stage_2_train_labels.csv`` of the RSNA pneumonia challenge: one row per box, so images repeat."""
    file = path if path.is_file() else _one(path, "stage_2_train_labels.csv")
    frame = _read_csv(file)
    _require_all(frame, file, ("patientId", "Target"))
    grouped = frame.groupby("patientId", sort=True)["Target"].max()
    root = images or file.parent / "stage_2_train_images"
    names = [str(name) for name in grouped.index]
    return LabelTable(
        [str(root / f"{name}.dcm") for name in names],
        _labels(grouped.to_frame("Target"), file, ["Target"]),
        ["Pneumonia"],
        names,
        [""] * len(names),
        notes=["patientId names an image: images of one person cannot be told to belong together"],
    )


def read_vindr(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """VinDr-CXR: a row per box and reader (``class_name``) or per image and reader (one column per class).

    A finding holds if at least half of the readers of the image saw it. ``image_labels_test.csv`` beside
    ``image_labels_train.csv`` is the test split. Patients are not published: every image counts as a patient of its
    own.
    """
    file = path if path.is_file() else _one(path, "train.csv", "image_labels_train.csv")
    shares = {"": _share_of_readers(file)}
    test = file.with_name("image_labels_test.csv")
    if file.name == "image_labels_train.csv" and test.exists():
        shares = {"train": shares[""], "test": _share_of_readers(test)}
    known = list(next(iter(shares.values())).columns)
    classes = list(classes or known)
    _check_classes(classes, known, file)
    _require_all(shares.get("test", shares[next(iter(shares))]), test, classes)
    paths, labels, names, splits = [], [], [], []
    for split, share in shares.items():
        folder = split or "train"
        roots = [images / folder, images] if images else [file.parent / folder, file.parent.parent / folder]
        for name in map(str, share.index):
            ways = [root / f"{name}{suffix}" for root in roots for suffix in (".dicom", ".dcm", ".png")]
            paths.append(str(_existing(*ways)))
            names.append(name)
            splits.append(split)
        labels.append((share[classes].to_numpy() >= 0.5).astype(np.float32))
    return LabelTable(
        paths,
        np.concatenate(labels),
        classes,
        names,
        splits,
        notes=["patients are not published: every image counts as a patient of its own"],
    )


def _share_of_readers(file: Path):
    """Per image (rows) and class (columns): the share of the image's readers that saw it."""
    frame = _read_csv(file)
    _require_all(frame, file, ("image_id",))
    if "class_name" in frame.columns:
        readers = frame.groupby("image_id")["rad_id"].nunique() if "rad_id" in frame.columns else None
        votes = frame.drop_duplicates(["image_id", "class_name", *(["rad_id"] if readers is not None else [])])
        counts = votes.groupby(["image_id", "class_name"]).size().unstack(fill_value=0)
        counts = counts.drop(columns=[name for name in counts.columns if name.lower() == "no finding"])
        share = counts.div(readers if readers is not None else 1, axis=0)
    else:
        share = frame.groupby("image_id")[[n for n in frame.columns if n not in ("image_id", "rad_id", "No finding")]]
        share = share.mean()
    return share.sort_index()


def read_padchest(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """The CSV of PadChest: ``Labels`` holds a Python list as text; frontal views; rows without labels are left out."""
    file = path if path.is_file() else _one(path, "PADCHEST*.csv*")
    frame = _read_csv(file)
    _require_all(frame, file, ("ImageID", "PatientID", "Projection", "Labels"))
    frame, notes = _frontal(frame, "Projection", PADCHEST_FRONTAL)
    known = frame["Labels"].notna()
    if not known.all():
        notes.append(f"{int((~known).sum())} images without labels")
        frame = frame[known]
    findings = [_listed(value, file) for value in frame["Labels"]]
    usable = [not found & PADCHEST_UNUSABLE and found != {"unchanged"} for found in findings]
    if not all(usable):
        notes.append(f"{usable.count(False)} images marked as unusable, or as unchanged and no more")
        frame, findings = frame[usable], [found for found, use in zip(findings, usable, strict=True) if use]
    counts: dict[str, int] = {}
    for found in findings:
        for name in found:
            counts[name] = counts.get(name, 0) + 1
    if classes is None:
        classes = sorted(name for name, n in counts.items() if n >= PADCHEST_LEAST and name not in PADCHEST_NO_CLASS)
        if not classes:
            raise ConfigError(f"{file}: no label has {PADCHEST_LEAST} images; name the classes wanted")
    _check_classes(classes, list(counts), file)
    root = images or file.parent
    folders = _strings(frame["ImageDir"]) if "ImageDir" in frame.columns else [""] * len(frame)
    return LabelTable(
        [
            str(_existing(root / folder / name, root / name))
            for folder, name in zip(folders, frame["ImageID"].astype(str), strict=True)
        ],
        np.array([[float(name in found) for name in classes] for found in findings], np.float32).reshape(
            -1, len(classes)
        ),
        list(classes),
        _strings(frame["PatientID"]),
        [""] * len(frame),
        notes=notes,
    )


PRESETS: dict[str, Callable[..., LabelTable]] = {
    "chexpert": read_chexpert,
    "mimic-cxr": read_mimic,
    "nih14": read_nih14,
    "rsna": read_rsna,
    "vindr": read_vindr,
    "padchest": read_padchest,
}


# --- parts ------------------------------------------------------------------------------------------------------------
def _read_csv(path: Path):
    """A CSV as it stands: only an empty cell is blank, so that a "nan" left behind by a script is seen as such."""
    pandas = import_pandas()
    try:
        return pandas.read_csv(path, low_memory=False, keep_default_na=False, na_values=[""])
    except (OSError, ValueError, UnicodeDecodeError, pandas.errors.ParserError) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error})") from error


def _labels(frame, path: Path, classes: Sequence[str], blank: float = np.nan) -> np.ndarray:
    """``[N, C] float32`` of 1, 0, -1 and ``blank``."""
    pandas = import_pandas()
    _require_all(frame, path, classes)
    columns = []
    for name in classes:
        given = frame[name]
        values = pandas.to_numeric(given, errors="coerce")
        bad = (values.isna() & given.notna()) | ~(values.isna() | values.isin((-1, 0, 1)))
        if bad.any():
            raise ConfigError(
                f"{path}: row {_first(bad)}, column {name!r} holds {str(given[bad].iloc[0])!r}; labels are 1, 0, -1 "
                "(uncertain) or blank; name the label columns with classes"
            )
        columns.append(values.fillna(blank).to_numpy(np.float32))
    return np.stack(columns, axis=1)


def _looks_like_labels(column) -> bool:
    """Whether a column holds numbers, or not-a-numbers among or instead of them (which are then refused by name)."""
    pandas = import_pandas()
    if pandas.api.types.is_numeric_dtype(column):
        return True
    numbers = pandas.to_numeric(column, errors="coerce")
    others = column[numbers.isna() & column.notna()].astype(str).str.strip().str.lower()
    return set(others) <= NOT_NUMBERS and (bool(numbers.notna().any()) or "nan" in set(others))


def _frontal(frame, column: str, wanted: Sequence[str]):
    """Rows of frontal views, and a note on how many were left out."""
    if column not in frame.columns:
        return frame, []
    keep = frame[column].isin(wanted)
    left_out = int((~keep).sum())
    return frame[keep], [f"{left_out} images that are no frontal view"] if left_out else []


def _require(frame, path: Path, candidates: Sequence[str], what: str) -> str:
    found = find_column(frame.columns, candidates)
    if found is None:
        raise ConfigError(f"{path}: has no column for {what}; accepted are {', '.join(candidates)}")
    return found


def _require_all(frame, path: Path, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in frame.columns]:
        raise ConfigError(f"{path}: has no column {missing[0]!r}; its columns are {', '.join(map(str, frame.columns))}")


def _check_classes(classes: Sequence[str], known: Sequence[str], path: Path) -> None:
    if foreign := [name for name in classes if name not in known]:
        raise ConfigError(f"classes: {foreign[0]!r} is not in {path}; it has {', '.join(sorted(known)[:40])}")


def _listed(text: object, path: Path) -> set[str]:
    """The labels in ``"['a', 'b ']"``."""
    try:
        values = ast.literal_eval(str(text))
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"{path}: {str(text)[:60]!r} is no list of labels") from error
    return {str(value).strip() for value in values}


def _one(folder: Path, *patterns: str) -> Path:
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise ConfigError(f"data: {folder} holds no {' or '.join(patterns)}")


def _under(root: Path, name: str) -> Path:
    return Path(name) if Path(name).is_absolute() else root / name


def _existing(*candidates: Path) -> Path:
    return next((path for path in candidates if path.exists()), candidates[0])


def _strings(column) -> list[str]:
    return [str(value) for value in column]


def _first(bad) -> int:
    """Line of the file that the first bad row stands on (the header is line 1)."""
    return int(np.flatnonzero(bad.to_numpy())[0]) + 2
