"""Readers of published label files, each as its authors distribute it.

Every reader returns a LabelTable whose labels are 1, 0, -1 (uncertain) or NaN (not known) and whose splits are those
of the data set, or blank.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath

import numpy as np

from ..data.listing import FilesByName
from ..errors import ConfigError
from ..regular_files import read_json, read_text
from ..terminal import counted
from .label_csv import first_row, import_pandas, label_values, read_csv, require_cells, require_columns, strings
from .label_table import LabelTable
from .padchest_tree import with_broader
from .renaming import NoSuchClass

CHEXPERT = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
NIH14 = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
CHEXPERT_FILES = ("train.csv", "valid.csv", "test.csv", "test_labels.csv")
RSNA_MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
PADCHEST_FRONTAL = ("PA", "AP", "AP_horizontal", "AP-horizontal")
PADCHEST_UNUSABLE = frozenset({"exclude", "suboptimal study"})
PADCHEST_NO_CLASS = frozenset({"", "normal", "unchanged"})  # "unchanged" speaks of an earlier study
PADCHEST_LEAST = 50  # images of a label that becomes a class by default


def read_chexpert(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """``train.csv``, ``valid.csv`` or a list of the test set of CheXpert, or the folder that holds them; frontal views.

    Radiologists labelled the images of ``valid.csv``: without a list of the test set these are the test split. Paths
    may start anywhere above the patient's folder, and be written as Windows has them.
    """
    pandas = import_pandas()
    files = [path] if path.is_file() else [path / name for name in CHEXPERT_FILES if (path / name).exists()]
    if not files:
        raise ConfigError(f"data: {path} holds neither train.csv nor valid.csv of CheXpert")
    frame = pandas.concat([_chexpert_list(file, classes or CHEXPERT).assign(list=str(file)) for file in files])
    frame, notes = _frontal(frame, "Frontal/Lateral", ("Frontal",))
    if {"val", "test"} & set(frame["split"]) == {"val"}:
        frame["split"] = frame["split"].replace("val", "test")
        notes.append("no list of the test set: valid.csv, which radiologists labelled, is the test split")
    root = images or files[0].parent
    classes = list(classes or CHEXPERT)
    parts = [(file, frame[frame["list"] == str(file)]) for file in files]  # so that an error names file and row
    return LabelTable(
        [str(_chexpert_image(root, name)) for name in frame["Path"]],
        np.concatenate([label_values(part, file, classes, blank=0.0) for file, part in parts]),  # a blank is a negative
        classes,
        strings(frame["patient"]),
        strings(frame["split"]),
        notes=notes,
    )


def _chexpert_list(file: Path, classes: Sequence[str]):
    """The rows of a list, with ``patient``, ``split``, and ``Frontal/Lateral`` where the list lacks it."""
    frame = read_csv(file)
    require_columns(frame, file, ("Path", *classes))
    frame["Path"] = frame["Path"].fillna("").str.replace("\\", "/", regex=False)
    found = frame["Path"].str.extract(r"(?:(?:^|/)(?P<folder>train|valid|val|test)/)?(?P<patient>patient\d+)(?=/)")
    if (lost := found["patient"].isna()).any():
        raise ConfigError(f"{file}: row {first_row(lost)}, column 'Path' names no patient (patient00001/...)")
    named = next((name for name in ("train", "val", "test") if file.stem.startswith(name)), "train")
    frame["patient"], frame["split"] = found["patient"], found["folder"].replace("valid", "val").fillna(named)
    if "Frontal/Lateral" not in frame.columns:  # the names tell it too: view2_lateral.jpg
        lateral = frame["Path"].str.contains("_lateral", case=False)
        frame["Frontal/Lateral"] = np.where(lateral, "Lateral", "Frontal")
    return frame


def _chexpert_image(root: Path, name: str) -> Path:
    """Where an image is: as its path says, below ``root`` or beside it, or with fewer folders above the patient's."""
    parts = name.split("/")
    patient = next(place for place, part in enumerate(parts) if re.fullmatch(r"patient\d+", part))
    shorter = [root / "/".join(parts[first:]) for first in range(1, patient + 1)]
    if PureWindowsPath(name).drive and not Path(name).is_absolute():  # another machine's: only its end can be here
        return _existing(*shorter[max(patient - 2, 0) :])
    return _existing(root / name, root.parent / name, *shorter)


def read_mimic(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """The folder of MIMIC-CXR-JPG: labels per study joined to images, official split and views; frontal views."""
    root = path if path.is_dir() else path.parent
    files = (path if path.is_file() else _one(root, "mimic-cxr-*-chexpert.csv*"),
             _one(root, "mimic-cxr-*-split.csv*"), _one(root, "mimic-cxr-*-metadata.csv*"))  # fmt: skip
    labels, splits, views = map(read_csv, files)
    classes = list(classes or CHEXPERT)
    require_columns(labels, files[0], ("subject_id", "study_id", *classes))
    require_columns(splits, files[1], ("dicom_id", "study_id", "subject_id", "split"))
    require_cells(splits, files[1], ("dicom_id", "study_id", "subject_id"))
    require_columns(views, files[2], ("dicom_id", "ViewPosition"))
    frame = splits.merge(views[["dicom_id", "ViewPosition"]], on="dicom_id", how="left")
    labels = labels[["subject_id", "study_id", *classes]].assign(row=labels.index)
    joined = frame.merge(labels, on=["subject_id", "study_id"], how="inner")
    left = len(frame) - len(joined)
    notes = [f"{counted(left, 'image')} of studies without labels"] if left else []
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
        # the labels are CheXpert's, and so is the meaning of a blank
        label_values(frame, files[0], classes, blank=0.0, rows=frame["row"]),
        classes,
        strings(frame["subject_id"]),
        strings(frame["split"]),
        notes=notes + more,
    )


def read_nih14(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """``Data_Entry_2017.csv`` of ChestX-ray14 (or its folder), with ``train_val_list.txt`` and ``test_list.txt``."""
    file = path if path.is_file() else _one(path, "Data_Entry_2017*.csv")
    frame = read_csv(file)
    require_columns(frame, file, ("Image Index", "Finding Labels", "Patient ID"))
    require_cells(frame, file, ("Image Index", "Patient ID"))
    classes = list(classes or NIH14)
    findings = [set(str(value).split("|")) for value in frame["Finding Labels"]]
    if (
        foreign := next((row for row, found in enumerate(findings) if found - {*NIH14, "No Finding"}), None)
    ) is not None:
        raise ConfigError(
            f"{file}: row {frame.index[foreign] + 2}, column 'Finding Labels' holds a finding that ChestX-ray14 has not"
        )
    _check_classes(classes, NIH14, file)
    labels = np.array([[float(name in found) for name in classes] for found in findings], np.float32)
    where = FilesByName(images or file.parent, [".png"])
    splits, notes = [""] * len(frame), []
    lists = {name: file.parent / f"{name}_list.txt" for name in ("train_val", "test")}
    if all(found.exists() for found in lists.values()):
        place = dict.fromkeys(read_text(lists["train_val"], None).split(), "train")
        place |= dict.fromkeys(read_text(lists["test"], None).split(), "test")
        listed = frame["Image Index"].isin(place).to_numpy()
        if not listed.all():
            notes.append(f"{counted(int((~listed).sum()), 'image')} in neither train_val_list.txt nor test_list.txt")
            frame, labels = frame[listed], labels[listed]
        splits = [place[name] for name in frame["Image Index"]]
    else:
        notes.append("train_val_list.txt and test_list.txt are not beside the CSV: split by patient instead")
    return LabelTable(
        [
            str(where.find(name.removesuffix(".png")) or (images or file.parent) / "images" / name)
            for name in frame["Image Index"]
        ],
        labels.reshape(-1, len(classes)),
        classes,
        strings(frame["Patient ID"]),
        splits,
        notes=notes,
    )


def read_rsna(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """``stage_2_train_labels.csv`` of the RSNA pneumonia challenge: one row per box, so images repeat.

    The images are of ChestX-ray14. With RSNA's mapping (``RSNA_MAPPING``) beside the CSV patients are those of
    ChestX-ray14, under the ids they have there, so that a model that saw them is told; without it every image counts as
    a patient of its own.
    """
    file = path if path.is_file() else _one(path, "stage_2_train_labels.csv")
    frame = read_csv(file)
    require_columns(frame, file, ("patientId", "Target"))
    require_cells(frame, file, ("patientId",))
    _check_classes(classes or (), ("Pneumonia",), file)
    boxes = import_pandas().Series(label_values(frame, file, ["Target"])[:, 0])
    grouped = boxes.groupby(frame["patientId"].to_numpy(), sort=True).max()
    root = images or file.parent / "stage_2_train_images"
    names = [str(name) for name in grouped.index]
    mapping = file.with_name(RSNA_MAPPING)
    known = _rsna_patients(mapping) if mapping.exists() else {}
    lost = sum(name not in known for name in names)
    if not known:
        notes = [
            f"patientId names an image: images of one person cannot be told to belong together; with RSNA's "
            f"{RSNA_MAPPING} beside {file.name} they can"
        ]
    else:
        notes = [
            f"the {len(names)} images are of {len({known.get(name, name) for name in names})} patients of ChestX-ray14 "
            f"({RSNA_MAPPING}): weights trained or pre-trained on ChestX-ray14 may have seen them"
        ]
    if known and lost:
        notes.append(f"{counted(lost, 'image')} not in {RSNA_MAPPING}: each a patient of its own")
    return LabelTable(
        [str(root / f"{name}.dcm") for name in names],
        grouped.to_numpy(np.float32)[:, None],
        ["Pneumonia"],
        [known.get(name, name) for name in names],
        [""] * len(names),
        notes=notes,
        patients_known=bool(known),
    )


def _rsna_patients(mapping: Path) -> dict[str, str]:
    """Of each image of the challenge the patient of ChestX-ray14, as ``Data_Entry_2017.csv`` writes its id."""
    try:
        rows = read_json(mapping, None)
        pairs = [(str(row["subset_img_id"]), re.fullmatch(r"(\d+)_\d+\.png", row["img_id"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{mapping}: is no list of img_id and subset_img_id ({error}); get it anew from RSNA, or remove it"
        ) from None
    if wrong := [number for number, (_, found) in enumerate(pairs, start=1) if found is None]:
        raise ConfigError(f"{mapping}: the img_id of entry {wrong[0]} is no name of ChestX-ray14 (00000001_000.png)")
    return {image: str(int(found[1])) for image, found in pairs}


def read_vindr(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """VinDr-CXR: a row per box and reader (``class_name``) or per image and reader (one column per class).

    A finding holds if at least half of the readers of the image saw it. ``image_labels_test.csv`` beside
    ``image_labels_train.csv`` is the test split. Patients are not published: every image counts as a patient of its
    own.
    """
    file = (
        path
        if path.is_file()
        else _one(path, "train.csv", "image_labels_train.csv", "annotations/image_labels_train.csv")
    )
    shares = {"": _share_of_readers(file)}
    test = file.with_name("image_labels_test.csv")
    if file.name == "image_labels_train.csv" and test.exists():
        shares = {"train": shares[""], "test": _share_of_readers(test)}
    known = list(next(iter(shares.values())).columns)
    classes = list(classes or known)
    _check_classes(classes, known, file)
    require_columns(shares.get("test", shares[next(iter(shares))]), test, classes)
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
        patients_known=False,
    )


def _share_of_readers(file: Path):
    """Per image (rows) and class (columns): the share of the image's readers that saw it."""
    frame = read_csv(file).rename(columns={"Other disease": "Other diseases"})  # in the list of the test set alone
    require_columns(frame, file, ("image_id",))
    require_cells(frame, file, ("image_id",))
    if "class_name" in frame.columns:
        readers = frame.groupby("image_id")["rad_id"].nunique() if "rad_id" in frame.columns else None
        votes = frame.drop_duplicates(["image_id", "class_name", *(["rad_id"] if readers is not None else [])])
        counts = votes.groupby(["image_id", "class_name"]).size().unstack(fill_value=0)
        counts = counts.drop(columns=[name for name in counts.columns if name.lower() == "no finding"])
        share = counts.div(readers if readers is not None else 1, axis=0)
    else:
        names = [name for name in frame.columns if name not in ("image_id", "rad_id", "No finding")]
        seen = import_pandas().DataFrame(label_values(frame, file, names), columns=names)
        share = seen.groupby(frame["image_id"].to_numpy()).mean()
    return share.sort_index()


def read_padchest(path: Path, images: Path | None, *, classes: Sequence[str] | None = None, **_) -> LabelTable:
    """The CSV of PadChest: ``Labels`` holds a Python list as text; frontal views; rows without labels are left out.

    A row holds the most exact labels alone; those that are broader hold as well (:mod:`.padchest_tree`).
    """
    file = path if path.is_file() else _one(path, "PADCHEST*.csv*")
    frame = read_csv(file, blank=("nan",))  # as pandas once wrote it: in 103 rows of the published file
    require_columns(frame, file, ("ImageID", "PatientID", "Projection", "Labels"))
    require_cells(frame, file, ("ImageID",))
    frame, notes = _frontal(frame, "Projection", PADCHEST_FRONTAL)
    known = frame["Labels"].notna()
    if not known.all():
        notes.append(f"{counted(int((~known).sum()), 'image')} without labels")
        frame = frame[known]
    findings = [_listed(value, file, row + 2) for row, value in frame["Labels"].items()]
    usable = [not found & PADCHEST_UNUSABLE and found != {"unchanged"} for found in findings]
    if not all(usable):
        notes.append(f"{counted(usable.count(False), 'image')} marked as unusable, or as unchanged and no more")
        frame, findings = frame[usable], [found for found, use in zip(findings, usable, strict=True) if use]
    exact = sum(map(len, findings))
    findings = [with_broader(found) for found in findings]
    if added := sum(map(len, findings)) - exact:
        notes.append(f"added: {counted(added, 'broader label')}, by more exact ones (PadChest's tree)")
    counts: dict[str, int] = {}
    for found in findings:
        for name in found:
            counts[name] = counts.get(name, 0) + 1
    if classes is None:
        classes = sorted(name for name, n in counts.items() if n >= PADCHEST_LEAST and name not in PADCHEST_NO_CLASS)
        if not classes:
            raise ConfigError(f"{file}: no label has {PADCHEST_LEAST} images; name the classes wanted")
    _check_classes(classes, list(counts), file, [name for name, n in counts.items() if n >= PADCHEST_LEAST])
    root = images or file.parent
    names = frame["ImageID"].astype(str)
    if (blank := frame["PatientID"].isna()).any():
        notes.append(f"{counted(int(blank.sum()), 'image')} without PatientID: each a patient of its own")
    folders = strings(frame["ImageDir"].fillna("")) if "ImageDir" in frame.columns else [""] * len(frame)
    return LabelTable(
        [str(_existing(root / folder / name, root / name)) for folder, name in zip(folders, names, strict=True)],
        np.array([[float(name in found) for name in classes] for found in findings], np.float32).reshape(
            -1, len(classes)
        ),
        list(classes),
        strings(frame["PatientID"].fillna(names)),
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
def _frontal(frame, column: str, wanted: Sequence[str]):
    """Rows of frontal views, and notes on how many were left out."""
    if column not in frame.columns:
        return frame, []
    keep, untold = frame[column].isin(wanted), frame[column].isna()
    notes = [
        f"{counted(count, 'image')} {what}"
        for count, what in (
            (int((~keep & ~untold).sum()), "of no frontal view"),
            (int(untold.sum()), f"whose view is not told ({column} is empty)"),
        )
        if count
    ]
    return frame[keep], notes


def _check_classes(
    classes: Sequence[str], known: Sequence[str], path: Path, shown: Sequence[str] | None = None
) -> None:
    """Refuse classes that are not ``known``; ``shown`` are those of them that stand in so many rows that they are no
    patient's alone."""
    if foreign := [name for name in classes if name not in known]:
        shown = known if shown is None else shown
        has = f"; it has {', '.join(sorted(shown)[:40])}" if shown else ""
        near = difflib.get_close_matches(foreign[0], shown, 1)
        raise NoSuchClass(f"classes: {foreign[0]!r} is not in {path}{has}", foreign[0], *near)


def _listed(text: object, path: Path, row: int) -> set[str]:
    """The labels in ``"['a', 'b ']"``, which stands in a row of a file."""
    try:
        values = ast.literal_eval(str(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        values = None
    if not isinstance(values, (list, tuple, set)):
        raise ConfigError(f"{path}: row {row}, column 'Labels' holds no list of labels")
    return {str(value).strip() for value in values}


def _one(folder: Path, *patterns: str) -> Path:
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise ConfigError(f"data: {folder} holds no {' or '.join(patterns)}")


def _existing(*candidates: Path) -> Path:
    return next((path for path in candidates if path.exists()), candidates[0])
