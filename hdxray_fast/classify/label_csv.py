"""A generic CSV of labels, and how the cells of every label file are read."""

from __future__ import annotations

import csv
import difflib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data.columns import (
    PATH_COLUMNS,
    PATIENT_COLUMNS,
    column_called,
    columns_in_words,
    find_column,
    hidden_in,
    named_column,
    twins_in,
)
from ..data.csv_cells import unquoted
from ..data.splits import SPLIT_COLUMNS, SPLIT_NAMES, SPLITS, canonical_split
from ..data.table_text import open_text_table
from ..errors import ConfigError, MissingDependencyError
from ..extras import install
from ..names import unescaped
from ..regular_files import reason_of
from ..terminal import visible
from .label_table import LabelTable
from .renaming import NoSuchClass

SPLIT_SYNONYMS = ("set", "subset", "dataset", "partition")  # where they hold names of splits, and not of data sets
MANY_VALUES = 10  # from which on a column that holds few labels is of something else: ages of children, too
LONGEST_CLASS = 80  # letters of a name in a column of labels
DECIMAL_COMMA = r"^\s*([+-]?\d+),(\d+(?:[eE][+-]?\d+)?)\s*$"
YES_OR_NO = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
# Read as 1 and 0 where a column holds both and nothing else: alone, or among others, they may mean something else
PAIRS = (("positive", "negative"), ("present", "absent"), ("ja", "nein"), ("oui", "non"), ("x", "0"))
CROSSES = frozenset({"x", "\u2713", "\u2714"})  # what marks a finding in a list that people keep
CROSSED = (
    "holds nothing but {} and blank cells; a blank one says 'not known', so that no image would be without the "
    "finding: write 1 for {}, and 0 where the finding is not there"
)
NOT_NUMBERS = frozenset({"nan", "na", "n/a", "none", "null", "inf", "-inf", "#n/a"})


def read_generic(
    path: Path,
    images: Path | None,
    *,
    classes: Sequence[str] | None = None,
    multiclass: bool = False,
    image_column: str | None = None,
    patient_column: str | None = None,
) -> LabelTable:
    """A CSV with a path column, one column per class, and optionally patient and split columns."""
    frame = read_csv(path, ours=True, ids=(image_column, patient_column))
    if not len(frame):
        raise ConfigError(f"data: {path} holds no usable row (the file holds no rows)")
    image = named_column(frame.columns, image_column, PATH_COLUMNS, "image_column", path)
    if image is None:
        columns = columns_in_words(frame.columns, (*SPLIT_COLUMNS, "label"))
        raise ConfigError(f"{path}: has no column of images; {columns}; name it with image_column (--image-column)")
    patient = named_column(frame.columns, patient_column, PATIENT_COLUMNS, "patient_column", path)
    split = _split_column(frame, path)
    require_cells(frame, path, filter(None, (image, patient)))
    alone = (
        "warning: no patient column: every image counts as a patient of its own; those of one may stand in training "
        "and in test, which flatters (--patient-column names one)"
    )
    notes = [] if patient else [alone]
    named = find_column(frame.columns, ["label"])
    if multiclass and named is not None:
        names = frame[named].astype("string").str.strip()
        if names.isna().any():
            raise ConfigError(f"{path}: row {first_row(names.isna())} has no label")
        _refuse_no_names(names, named, path)
        classes = list(classes) if classes else sorted(names.unique())
        if foreign := sorted(set(names) - set(classes)):
            lacking = [name for name in classes if name not in set(names)] or classes
            raise NoSuchClass(
                f"{path}: row {first_row(~names.isin(classes))}, column {named!r} holds none of the classes "
                f"{', '.join(classes)}; remove such rows ({len(foreign)} other names), or name theirs among the "
                "classes",
                (difflib.get_close_matches(foreign[0], lacking, 1) or lacking)[0],
                foreign[0],
            )
        if len({name.lower() for name in classes}) < len(classes):
            raise ConfigError(f"{path}: some of the labels {', '.join(classes)} differ in case alone; write them alike")
        labels = np.stack([(names == name).to_numpy(np.float32) for name in classes], axis=1)
    else:
        if classes is None:
            others = [name for name in frame.columns if name not in (image, patient, split)]
            classes, more = _label_columns(frame[others], path)
            notes += more
        frame = frame.rename(columns={column_called(frame.columns, name): name for name in classes})
        labels = label_values(frame, path, classes)
        pairs = {name: pair for name in classes if (pair := _pair(frame[name]))}
        notes += [f"{name}: {pair[0]!r} is read as 1 and {pair[1]!r} as 0" for name, pair in pairs.items()]
    paths = [str(_under(images or path.parent, unescaped(name))) for name in strings(frame[image])]
    return LabelTable(
        paths,
        labels,
        list(classes),
        strings(frame[patient or image]),  # as it is written there: the same from wherever the manifest is read
        strings(frame[split].fillna("")) if split else [""] * len(frame),
        multiclass,
        notes,
        lines=[int(place) + 2 for place in frame.index],
        patients_known=patient is not None,
    )


def _refuse_no_names(names, column: str, path: Path) -> None:
    """Raise a ConfigError if a column of class names holds something else: a text, or an id for each image."""
    wrong = names.map(lambda name: len(name) > LONGEST_CLASS or visible(name) != name).astype(bool)
    if wrong.any():
        raise ConfigError(
            f"{path}: row {first_row(wrong)}, column {column!r} holds no name of a class: it is longer than "
            f"{LONGEST_CLASS} letters, or has control characters"
        )
    if 4 < (count := names.nunique()) > len(names) / 2:
        raise ConfigError(
            f"{path}: column {column!r} holds {count} different texts in {len(names)} rows, which are no names of "
            "classes; leave it out, or give another name to it"
        )


# --- parts ------------------------------------------------------------------------------------------------------------
def import_pandas():
    """pandas, or an error that says how to install it."""
    try:
        import pandas
    except ImportError as error:
        raise MissingDependencyError(f"reading labels needs pandas: {install('classify')}") from error
    return pandas


def read_csv(path: Path, blank: Sequence[str] = (), ours: bool = False, ids: Sequence[str | None] = ()):
    """A CSV as text: ids keep their zeros, and only an empty cell is blank, so that a "nan" left behind is seen. Its
    index is 0 for the first row below the header, and counts blank lines.

    Args:
        path: of the file.
        blank: words that stand for an empty cell in it, too.
        ours: it may be of :mod:`..data.csv_cells`, whose cells are read as they were.
        ids: columns of names of files and of patients that do not go by the usual names.
    """
    pandas = import_pandas()
    options = {"dtype": str, "keep_default_na": False, "na_values": ["", *blank], "skipinitialspace": True}
    try:
        with open_text_table(path) as (stream, separator), warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            # without index_col=False rows that end in a comma, where the header does not, move one column to the left
            frame = pandas.read_csv(stream, index_col=False, sep=separator, **options)
            stream.seek(0)
            frame.index = _places(stream, separator, len(frame))
            stream.seek(0)
            frame.columns = _names(stream, separator, frame.columns)
    except pandas.errors.ParserWarning as error:
        raise ConfigError(f"{path}: has rows with more cells than its header has columns") from error
    except (OSError, ValueError, pandas.errors.ParserError) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({reason_of(error)})") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    if ours:
        frame.columns = [unquoted(name) for name in frame.columns]
        frame = frame.map(unquoted, na_action="ignore").astype(object)  # without text a column would be one of numbers
    if twins := twins_in(frame.columns):
        raise ConfigError(f"{path}: its columns {twins[0]} and {twins[1]} have one name; rename or remove one")
    if hidden := hidden_in(frame.columns):
        raise ConfigError(f"{path}: the name of its column {hidden} holds a control character or an invisible one")
    if separator == ";":  # where numbers have commas, columns are parted by semicolons
        texts = {find_column(frame.columns, names) for names in (PATH_COLUMNS, PATIENT_COLUMNS)}
        texts |= {column_called(frame.columns, name) for name in ids if name is not None}
        for name in frame.columns.difference(list(filter(None, texts))):
            frame[name] = frame[name].str.replace(DECIMAL_COMMA, r"\1.\2", regex=True)
    return frame


def _split_column(frame, path: Path) -> str | None:
    """The column of splits; one that holds other words is refused, or no column of splits if its name may mean more."""
    split = find_column(frame.columns, SPLIT_COLUMNS)
    if split is None:
        split = find_column(frame.columns, SPLIT_SYNONYMS)
        if split is None or not frame[split].dropna().map(canonical_split).isin(SPLITS).any():
            return None
    wrong = ~frame[split].fillna("").map(canonical_split).isin(("", *SPLITS))
    if wrong.any():
        raise ConfigError(
            f"{path}: row {first_row(wrong)}, column {split!r} names no split; accepted are {', '.join(SPLITS)} (or "
            f"{', '.join(SPLIT_NAMES)})"
        )
    return split


def _label_columns(frame, path: Path) -> tuple[list[str], list[str]]:
    """Which of the columns are classes, where none was named, and notes on that."""
    unnamed = [name for name in frame.columns if name.startswith("Unnamed:")]  # an index that a script wrote along
    blank = [name for name in frame.columns if name not in unnamed and frame[name].isna().all()]
    others = [name for name in frame.columns if name not in (*unnamed, *blank)]
    kinds = {name: _kind_of_column(frame[name]) for name in others}
    measured, classes = ([name for name in others if kinds[name] == kind] for kind in ("measured", "labels"))
    left = [name for name in others if name not in classes]
    hint = "; --multiclass true reads the names in 'label'" if find_column(left, ["label"]) else ""
    crossed = {name: mark for name in left if (mark := _cross(frame[name]))}
    if not classes:
        if crossed:
            name, mark = next(iter(crossed.items()))
            others = f" (so do {', '.join(list(crossed)[1:])})" if crossed.keys() - {name} else ""
            raise ConfigError(f"{path}: column {name!r} {CROSSED.format(mark, mark)}{others}")
        if not left:
            raise ConfigError(f"{path}: has no column of labels beside its path, patient and split")
        others = columns_in_words(left, left)
        pairs = ", ".join("/".join(pair) for pair in PAIRS)
        raise ConfigError(
            f"{path}: has no column of labels (1, 0, -1 or blank; true/false, yes/no; or nothing but {pairs}) beside "
            f"path, patient and split; {others}{hint}"
        )
    notes = [f"classes: {', '.join(classes)}; name them with --classes if one of these is none"]
    if measured:
        notes.append(f"left out: {', '.join(measured)} (values other than 0 and 1)")
    for name, mark in crossed.items():
        notes.append(f"warning: {name} is not read as a class: it {CROSSED.format(mark, mark)}")
    if texts := [name for name in left if name not in measured and name not in crossed]:
        notes.append(f"not read as classes: {', '.join(texts)}{hint}")
    if empty := [*unnamed, *blank]:
        notes.append(f"columns without a name or a value are left out: {', '.join(empty)}")
    return classes, notes


def _numbers(column):
    """Cells as float64, NaN where they are none; words for 1 and 0 count as these."""
    numbers = import_pandas().to_numeric(column, errors="coerce").astype(np.float64)
    words = column[numbers.isna() & column.notna()].astype(str).str.strip().str.lower()
    meaning = dict(zip(pair, (1.0, 0.0), strict=True)) if (pair := _pair(column)) else YES_OR_NO
    words = words.map(meaning).dropna().astype(np.float64)
    numbers[words.index] = words
    return numbers


def _pair(column) -> tuple[str, str] | None:
    """The words of ``PAIRS`` that all cells of a column are, both of them; blank ones apart."""
    words = set(column.dropna().astype(str).str.strip().str.lower())
    return next((pair for pair in PAIRS if words == set(pair)), None)


def _cross(column) -> str:
    """The mark that all cells of a column are, blank ones apart; blank if they are something else."""
    marks = set(column.dropna().astype(str).str.strip())
    return repr(min(marks).lower()) if marks and {mark.lower() for mark in marks} <= CROSSES else ""


def label_values(frame, path: Path, classes: Sequence[str], blank: float = np.nan, rows=None) -> np.ndarray:
    """``[N, C] float32`` of 1, 0, -1 and ``blank``. ``rows``: the index that the frame's rows have in the file, where
    the frame has another."""
    require_columns(frame, path, classes)
    columns = []
    for name in classes:
        given = frame[name]
        values = _numbers(given)
        bad = (values.isna() & given.notna()) | ~(values.isna() | values.isin((-1, 0, 1)))
        if bad.any():
            if mark := _cross(given):
                raise ConfigError(f"{path}: column {name!r} {CROSSED.format(mark, mark)}")
            row = first_row(bad if rows is None else bad.set_axis(rows))
            raise ConfigError(
                f"{path}: row {row}, column {name!r} holds {_kind(given[bad].iloc[0])}; labels are 1, 0, -1 "
                "(uncertain) or blank, and true, false, yes and no; write other words as 1 and 0, or name the label "
                f"columns with classes (--classes){one_of_many(name)}"
            )
        columns.append(values.fillna(blank).to_numpy(np.float32))
    return np.stack(columns, axis=1)


def one_of_many(name: str) -> str:
    return "; --multiclass true reads names of classes in it" if name.strip().lower() == "label" else ""


def _kind(cell: object) -> str:
    """What a cell holds, which may be a patient's: a word for nothing and a cross are shown, anything else is
    named by its kind."""
    word = str(cell).strip()
    if word.lower() in NOT_NUMBERS | CROSSES:
        return repr(word)
    try:
        float(word)
    except ValueError:
        return "a text"
    return "another number"


def _kind_of_column(column) -> str:
    """``"labels"``, ``"measured"`` (numbers that are none, such as ages), or ``""``, of anything else.

    Labels are numbers, not-a-numbers among or instead of them, or labels in half of the cells; what else stands there
    is then refused by name. Measured is a column of many values, or without any label.
    """
    numbers = _numbers(column)
    others = set(column[numbers.isna() & column.notna()].astype(str).str.strip().str.lower())
    known = numbers.dropna()
    labels = int(known.isin((-1, 0, 1)).sum())
    if others <= NOT_NUMBERS and len(known):
        many = 2 * labels < len(known) and known.nunique() >= MANY_VALUES
        return "measured" if many or not labels else "labels"
    half = 2 * labels >= column.notna().sum() > 0
    return "labels" if half or (others <= NOT_NUMBERS and "nan" in others) else ""


def require_columns(frame, path: Path, names: Sequence[str]) -> None:
    """Raise a ConfigError that names the file and its columns if one is missing."""
    if missing := [name for name in names if name not in frame.columns]:
        folded = {str(name).casefold(): name for name in frame.columns[::-1]}  # of names alike the first
        near = difflib.get_close_matches(missing[0].casefold(), folded, 1)
        hint = f"; is {visible(folded[near[0]])!r} meant?" if near else ""
        words = f"{path}: has no column {missing[0]!r}{hint}; {columns_in_words(frame.columns, names)}"
        raise NoSuchClass(words, missing[0], folded[near[0]] if near else "")


def require_cells(frame, path: Path, columns: Iterable[str]) -> None:
    """Raise a ConfigError that names the row if a cell of these columns is blank: ids and names of files."""
    for column in columns:
        if (blank := frame[column].fillna("").str.strip() == "").any():
            raise ConfigError(f"{path}: row {first_row(blank)} has nothing in the column {column!r}")


def _under(root: Path, name: str) -> Path:
    return Path(name) if Path(name).is_absolute() else root / name


def strings(column) -> list[str]:
    """Cells as text without spaces around it: "P1 " and "P1" are one patient, "007" and "7" are two."""
    return [str(value).strip() for value in column]


def first_row(bad) -> int:
    """Row of the file that the first bad one is (the header is row 1), of a frame's rows or of some of them."""
    return int(bad.index[np.flatnonzero(bad.to_numpy())[0]]) + 2


def _filled_rows(stream, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of a file with their numbers from 0 on, without the blank ones, which pandas passes over."""
    for number, cells in enumerate(csv.reader(stream, delimiter=separator, skipinitialspace=True)):
        if len(cells) > 1 or "".join(cells).strip():
            yield number, cells


def _names(stream, separator: str, read: Sequence[str]) -> Sequence[str]:
    """The names of columns as the header has them: pandas calls a second ``a`` ``a.1``, which is another column's name.
    ``read``: by pandas, which calls those without a name ``Unnamed: 3``."""
    try:
        _, header = next(_filled_rows(stream, separator), (0, []))
    except csv.Error:
        return read
    if len(header) != len(read):
        return read
    return [name if name.strip() else called for name, called in zip(header, read, strict=True)]


def _places(stream, separator: str, count: int) -> Sequence[int]:
    """Of each of ``count`` rows where it stands below the header of a file, from 0 on: blank lines, which pandas passes
    over, count."""
    if sum(1 for _ in stream) == count + 1:
        return range(count)
    stream.seek(0)
    try:
        found = [number for number, _ in _filled_rows(stream, separator)]
    except csv.Error:
        found = []
    return [number - 1 for number in found[1:]] if len(found) == count + 1 else range(count)
