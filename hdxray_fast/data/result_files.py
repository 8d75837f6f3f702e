"""Tables of results as files of the kind that the ending of their name says; in a folder they have the usual name."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from ..errors import ConfigError, HDXrayError, MissingDependencyError
from ..extras import install
from ..files import written_whole
from ..names import escaped
from ..parquet_files import open_parquet
from ..regular_files import open_regular, reason_of
from .csv_cells import write_table
from .table_text import open_text_table
from .workbook import MOST_ROWS, write_workbook

TABLES = (".csv", ".json", ".parquet", ".xlsx")
HEAD = 1 << 16  # bytes that hold a first row
AT_ONCE = 4096  # rows that are in memory twice while a Parquet file is written


def file_named_by(
    out: str | os.PathLike, usual: str, endings: Sequence[str] = TABLES, argument: str = "out", folders: bool = True
) -> Path:
    """The file that ``out`` names.

    Args:
        out: a file with one of ``endings``, or a folder: one that is there, or a name that ends in a slash.
        usual: the file's name in a folder.
        endings: accepted ones, with their dots.
        argument: that gave ``out``, for the error.
        folders: whether a folder may be given.

    Raises:
        ConfigError: it has another ending, or none.
    """
    path, known = Path(out), " and ".join([", ".join(endings[:-1]), endings[-1]] if endings[1:] else endings)
    if folders and (path.is_dir() or os.fspath(out).endswith(("/", os.sep))):
        path = path / usual
    elif path.suffix.lower() not in endings or path.is_dir():
        what = "is a folder" if path.is_dir() else "does not say by its ending what kind of file it is to be"
        kinds = f"are files that end in {known}" if endings[1:] else f"is a file that ends in {known}"
        new = ", and folders, a new one with a slash behind its name" * folders
        raise ConfigError(f"{argument}: {path} {what}; accepted {kinds}, such as {usual}{new}")
    return path


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence], names: Sequence[str] = ()) -> None:
    """A table in the kind of file that the ending of ``path`` says, whole or not at all.

    Numbers have all of their digits, but in a workbook, which is for people alone.

    Args:
        path: with one of ``TABLES``.
        header: names of the columns.
        rows: as many values each: text, numbers, truth values, or ``None`` where there is none.
        names: columns of names of files, or of ids, that may hold any bytes; they are written :func:`.names.escaped`.

    Raises:
        MissingDependencyError: of a Parquet file, pyarrow is not installed; of a workbook, openpyxl is not.
        ConfigError: of a workbook, the table is larger than these can be.
    """
    with written_whole(path) as temporary:
        if path.suffix.lower() == ".csv":
            with temporary.open("w", newline="", encoding="utf-8") as stream:
                write_table(stream, header, rows, names=names)
        elif path.suffix.lower() == ".json":
            with temporary.open("w", encoding="utf-8") as stream:
                stream.write("[")
                for number, row in enumerate(_mappings(header, rows, names)):
                    stream.write(",\n" * bool(number) + json.dumps(row, ensure_ascii=False))
                stream.write("]\n")
        elif path.suffix.lower() == ".xlsx":
            write_workbook(temporary, header, (row.values() for row in _mappings(header, rows, names)))
        else:
            _write_parquet(temporary, header, _mappings(header, rows, names))


def write_for_people(path: Path, header: Sequence[str], rows: Iterable[Sequence], names: Sequence[str] = ()) -> Path:
    """A CSV for programs, and beside it an Excel workbook of its name where openpyxl is installed: a CSV's commas and
    umlauts are lost on spreadsheets of many countries.

    Args:
        path: of the CSV; an earlier workbook beside it goes.
        header, rows, names: as for :func:`write_rows`.

    Returns:
        The workbook; without openpyxl, and of more rows than one has, the CSV.
    """
    rows, workbook = list(rows), path.with_suffix(".xlsx")
    write_rows(path, header, rows, names)
    if find_spec("openpyxl") is None or len(rows) >= MOST_ROWS:
        workbook.unlink(missing_ok=True)
        return path
    write_rows(workbook, header, rows, names)
    return workbook


def refuse_other_table(path: Path, columns: Sequence[str], what: str) -> None:
    """Raise a ConfigError if a file is there that has not these columns, as :func:`write_rows` wrote them: labels, say.

    Args:
        path: with one of ``TABLES``.
        columns: names of some of the columns.
        what: is in such a table.
    """
    if not os.path.lexists(path):
        return
    try:
        found = _columns_of(path)
    except (HDXrayError, OSError, ValueError, ImportError, csv.Error) as error:
        raise ConfigError(
            f"out: {path} would be written over, and cannot be read as a table of {what} ({reason_of(error)}); choose "
            "another file"
        ) from error
    if found is not None and not set(columns) <= set(found):
        raise ConfigError(f"out: {path} would be written over, and is no table of {what}; choose another file")


def _columns_of(path: Path) -> list[str] | None:
    """Of the first row; ``None`` of a list without any."""
    if path.suffix.lower() == ".parquet":
        with open_parquet(path) as table:
            return table.schema.names
    if path.suffix.lower() == ".xlsx":
        with open_text_table(path) as (stream, _):
            return next(csv.reader(stream), [])
    with open_regular(path) as stream:
        head = stream.read(HEAD).decode("utf-8-sig", "replace")  # a spreadsheet may have saved it
    if path.suffix.lower() == ".csv":
        return next(csv.reader([head.splitlines()[0]]), []) if head else []
    if head.strip() == "[]":
        return None
    row, _ = json.JSONDecoder().raw_decode(head.removeprefix("["))
    return list(row) if isinstance(row, dict) else []


def _mappings(header: Sequence[str], rows: Iterable[Sequence], names: Sequence[str]) -> Iterator[dict]:
    for row in rows:
        yield {
            name: escaped(value) if name in names and isinstance(value, str) else value
            for name, value in zip(header, row, strict=True)
        }


def _write_parquet(path: Path, header: Sequence[str], rows: Iterator[dict]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f"Parquet files need pyarrow: {install('embed')}") from error
    first = list(islice(rows, AT_ONCE))
    table = pyarrow.Table.from_pylist(
        first, None if first else pyarrow.schema([(name, pyarrow.string()) for name in header])
    )
    with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        while some := list(islice(rows, AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(some, table.schema))
