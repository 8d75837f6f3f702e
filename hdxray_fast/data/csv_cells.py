"""Cells of CSV files: none is a formula where a spreadsheet opens them, names may hold any bytes, and each reads back
as it was."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import IO

from ..names import escaped, unescaped
from ..regular_files import lines
from ..terminal import written_out

STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # a spreadsheet takes what begins so for a formula
# Bytes that are not UTF-8, and control characters but those of a text: a table shown on a terminal must not drive it
HIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
DIGITS = 6  # of a number that no command reads again
QUOTE = "'"  # which it takes for the sign that text follows


def harmless(value: object) -> object:
    """A cell as it is written: text that a spreadsheet would run has an apostrophe before it; numbers stay numbers."""
    if not isinstance(value, str) or not (value.startswith(STARTS) or _is_quoted(value)):
        return value
    return value if _is_number(value) else QUOTE + value


def rounded(value: object) -> object:
    """A number as people read it, to ``DIGITS`` significant digits; whole numbers and all else as they are."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def unquoted(cell: str) -> str:
    """The text that :func:`harmless` made a cell of."""
    return cell[1:] if _is_quoted(cell) else cell


def name_of(cell: str) -> str:
    """The name of any bytes that :func:`write_table` made a cell of."""
    return unescaped(unquoted(cell))


def _is_quoted(cell: str) -> bool:
    return cell.startswith(QUOTE) and cell[1:].startswith((QUOTE, *STARTS))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and cell.isprintable()


def write_table(
    stream: IO[str],
    header: Sequence[str],
    rows: Iterable[Sequence | Mapping],
    names: Sequence[str] = (),
    *,
    goes_on: bool = False,
) -> None:
    """Write a CSV of harmless cells.

    Args:
        stream: a text file that was opened with ``newline=""``.
        header: of the columns.
        rows: as many values each; of mappings the values under the header's, blank where there is none.
        names: columns with names of files, or ids that may be such, of any bytes: they stand there
            :func:`.names.escaped`. Bytes that are not UTF-8 and control characters (but tabs and ends of lines) in
            other cells, which quote names, are written out.
        goes_on: these are more rows of a table whose header stands there already.
    """
    writer = csv.writer(stream)
    if not goes_on:
        writer.writerow(map(harmless, header))
    for row in rows:
        values = [row.get(name, "") for name in header] if isinstance(row, Mapping) else row
        writer.writerow(harmless(_text(value, column in names)) for value, column in zip(values, header, strict=True))


def read_table(stream: IO[str], names: Sequence[str] = (), needed: Collection[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV that :func:`write_table` wrote; arguments as there.

    Raises:
        csv.Error: the header, or a row, lacks a column that is ``needed``.
    """
    header, *rows = list(csv.reader(lines(stream, getattr(stream, "name", "the table")))) or [[]]
    header = list(map(unquoted, header))
    read = [name_of if column in names else unquoted for column in header]
    found = [{column: take(cell) for column, take, cell in zip(header, read, row, strict=False)} for row in rows if row]
    if not all(set(needed) <= set(columns) for columns in (header, *found)):
        raise csv.Error(f"its columns are not {', '.join(sorted(needed))}")
    return found


def _text(value: object, name: bool) -> object:
    if not isinstance(value, str):
        return value
    return escaped(value) if name else HIDDEN.sub(lambda found: written_out(found[0]), value)
