"""A table as an Excel workbook: numbers are numbers and text is text in every country, whatever its separators."""

from __future__ import annotations

import csv
import datetime
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import IO, Any
from xml.etree.ElementTree import ParseError

from ..errors import ConfigError, HDXrayError, MissingDependencyError, NotAFileError
from ..extras import install
from ..packed_tables import DAMAGED, MOST_RATIO, UNPACKED
from ..regular_files import reason_of
from ..terminal import visible
from .csv_cells import rounded

MOST_ROWS, MOST_COLUMNS, MOST_TEXT = 1 << 20, 1 << 14, 32767  # of a sheet; characters of a cell
NO_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
XLSX, NO_XLSX = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"  # a workbook; one of Excel 2003, or under a password
NO_WORKBOOK = (*DAMAGED, KeyError, TypeError, AttributeError, IndexError, ParseError)  # or has parts of another kind


def write_workbook(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a table as the one sheet of a workbook; text is no formula there, whatever it begins with.

    Args:
        path: of the file, which is written over.
        header: of the columns.
        rows: as many values each: text, truth values, ``None`` for an empty cell, and numbers, which are
            :func:`.csv_cells.rounded`: a workbook is for people.

    Raises:
        MissingDependencyError: openpyxl is not installed.
        ConfigError: the table, or a text in it, is larger than workbooks can be.
    """
    openpyxl = _import_openpyxl()
    if len(header) > MOST_COLUMNS:
        raise ConfigError(f"out: {len(header)} columns are more than the {MOST_COLUMNS} of a workbook; write a .csv")
    workbook = openpyxl.Workbook(write_only=True)
    sheet = workbook.create_sheet("Table")
    sheet.freeze_panes = "A2"  # the header stays in sight
    try:
        for number, row in enumerate(chain([header], rows), start=1):
            if number > MOST_ROWS:
                raise ConfigError(f"out: the table has more than the {MOST_ROWS} rows of a workbook; write a .csv")
            sheet.append([_cell(sheet, value) for value in row])
    except BaseException:
        sheet.close()  # it is written to a temporary file as it grows
        raise
    workbook.save(path)


def _cell(sheet: Any, value: object) -> Any:
    from openpyxl.cell import WriteOnlyCell

    if isinstance(value, float) and not math.isfinite(value):
        value = str(value)
    if not isinstance(value, str):
        return rounded(value)
    if len(value) > MOST_TEXT:
        raise ConfigError(f"out: a text has more than the {MOST_TEXT} characters of a workbook's cell; write a .csv")
    cell = WriteOnlyCell(sheet, NO_XML.sub("\ufffd", value))
    cell.data_type = "s"  # not a formula, nor an error, as it may look like one
    return cell


def workbook_as_csv(path: str | os.PathLike, file: IO[bytes]) -> BytesIO:
    """What :func:`_rows` gives as CSV: commas, every cell in quotes, UTF-8.

    Args:
        path: of the workbook, for messages.
        file: its bytes, from which any of them can be read.

    Raises:
        MissingDependencyError: openpyxl is not installed.
        NotAFileError: it is no workbook, is damaged, or unpacks to more than a table does.
    """
    content = BytesIO()
    text = TextIOWrapper(content, encoding="utf-8", errors="surrogatepass", newline="")
    try:
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows(_rows(path, file))
        text.detach()  # flushed, and open to be read
    except HDXrayError:
        raise
    except NO_WORKBOOK as error:
        raise NotAFileError(path, f"is no Excel workbook that can be read ({reason_of(error)})") from error
    content.seek(0)
    return content


def _rows(path: str | os.PathLike, file: IO[bytes]) -> Iterator[list[str]]:
    """The first sheet's rows as text, as wide as the first one, without those that are empty."""
    openpyxl = _import_openpyxl()
    most = UNPACKED + MOST_RATIO * file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        if sum(part.file_size for part in archive.infolist()) > most:
            raise NotAFileError(path, f"unpacks to more than {most >> 20} MiB, which no table does")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of drawings and formats that are not read
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)  # of formulas what they came to
    sheet, *others = book.worksheets
    if others:
        warnings.warn(
            f"{visible(path)}: its first sheet was read, not the other {len(others)}",
            stacklevel=1,  # one line, whoever asks and how often
        )
    sheet.reset_dimensions()  # which some programs write wrongly
    width = 0
    for row in sheet.iter_rows(values_only=True):
        cells = [_text(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            width = width or len(cells)
            yield cells + [""] * (width - len(cells))


def _text(value: object) -> str:
    """As a spreadsheet shows it: whole numbers without a point, days without a time."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return str(value)


def _import_openpyxl() -> Any:
    try:
        import openpyxl
    except ImportError as error:
        raise MissingDependencyError(f"Excel workbooks need openpyxl: {install('excel')}; or use a .csv") from error
    return openpyxl
