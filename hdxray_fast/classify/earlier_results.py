"""Results that stand where new ones are to be written: those of other films or of another model stay, unless forced."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.csv_cells import unquoted
from ..data.splits import canonical_split
from ..data.table_text import open_text_table
from ..errors import ConfigError, HDXrayError
from ..names import unescaped
from ..parquet_files import open_parquet
from ..regular_files import RUN_JSON, read_json, reason_of
from ..terminal import counted, first_names
from .prediction_files import LABEL, PRESENT
from .predictions import MODEL, THRESHOLD, VIEW

NO_CLASSES = {"image", "patient", PRESENT, VIEW, MODEL}
REPLACE = "or --force (force=True) to replace it"


def refuse_other_predictions(
    path: Path, files: Sequence[str], classes: Sequence[str], model: str, force: bool = False
) -> None:
    """Raise a ConfigError if a table is there that new predictions would take something from: it has a film that is
    none of ``files``, another class, or another model's answers, or does not say whose they are.

    Args:
        path: of the table, a :data:`.result_files.TABLES`; what is no table of predictions is refused before.
        files: that are to be predicted.
        classes: that are asked about.
        model: as of :class:`.Predictions`.
        force: any table of predictions may go.
    """
    if force or not os.path.lexists(path):
        return
    try:
        rows = _rows_of(path)
        images = {os.path.abspath(row["image"]): row["image"] for row in rows}
        models = {str(row.get(MODEL) or "") for row in rows}
    except (HDXrayError, OSError, ValueError, ImportError, KeyError, TypeError, csv.Error) as error:
        raise ConfigError(
            f"out: {path} would be written over, and cannot be read ({reason_of(error)}); give another file, {REPLACE}"
        ) from error
    asked = {*map(os.path.abspath, files)}
    others = [name for place, name in images.items() if place not in asked]
    why = ""
    if others:
        why = f"has predictions of {counted(len(others), 'other film')}: {first_names(others)}"
    elif rows and (strange := _classes_of(rows[0], classes) ^ {*classes}):
        why = f"is of other classes ({first_names(sorted(strange))})"
    elif MODEL not in classes and models - {model}:
        why = "does not say which model it is of" if "" in models else "has predictions of another model"
    if why:
        raise ConfigError(f"out: {path} would be written over, and {why}; give another file, {REPLACE}")


def identity_of(model_print: str, data: str | os.PathLike, split: str) -> dict[str, str]:
    """What ``metrics.json`` of an evaluation says of its model, of its data and of the split."""
    return {"model_print": model_print, "data": os.path.abspath(data), "split": split}


def refuse_other_evaluation(out: Path, now: Mapping[str, str], force: bool = False) -> None:
    """Raise a ConfigError if the folder holds an evaluation of another model, of other data or of another split.

    Args:
        out: the folder.
        now: of :func:`identity_of`.
        force: it may go.
    """
    if force:
        return
    try:
        saved = dict(read_json(out / "metrics.json", RUN_JSON))
    except (OSError, ValueError, TypeError):
        return
    for name, value in now.items():
        before = saved.get(name, value)  # earlier releases have less
        if name == "split":
            before, value = canonical_split(str(before)), canonical_split(str(value))
        if name == "data" and not os.path.isabs(str(before)):
            continue  # of an earlier release, which does not say from where
        if before != value:
            what = "of another model" if name == "model_print" else f"with {name}={before}, not {value}"
            raise ConfigError(f"out: {out} holds an evaluation {what}; give another folder, {REPLACE}")


def _classes_of(row: Mapping[str, object], asked: Sequence[str]) -> set[str]:
    """The classes of a table: those that have a threshold, and those of ``asked`` that it has; of exclusive classes,
    which have none, whatever column is nothing else."""
    named = {name.removeprefix(THRESHOLD) for name in row if name.startswith(THRESHOLD)}
    named = named or {name for name in row if name not in NO_CLASSES and not name.startswith(LABEL)}
    return (named & {*row}) | ({*asked} & {*row})


def _rows_of(path: Path) -> list[dict]:
    """Rows of a table that :func:`.result_files.write_rows` wrote, a spreadsheet saved, or both."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        with open_parquet(path) as table:
            rows = table.read().to_pylist()
    elif kind == ".json":
        rows = [dict(row) for row in read_json(path, RUN_JSON)]
    else:
        with open_text_table(path) as (stream, separator):
            header, *cells = list(csv.reader(stream, delimiter=separator)) or [[]]
        if kind == ".csv":
            header, cells = [unquoted(name) for name in header], [[unquoted(cell) for cell in row] for row in cells]
        rows = [dict(zip(header, row, strict=False)) for row in cells if row]
    return [{**row, "image": unescaped(row["image"])} for row in rows]
