"""Cells of CSV files: none is a formula where a spreadsheet opens them, names may hold any bytes, and each reads back
as it was."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import IO

from ..names import escaped, unescaped

STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # a spreadsheet takes what begins so for a formula
QUOTE = "'"  # which it takes for the sign that text follows


def harmless(value: object) -> object:
    """A cell as it is written: text is :func:`.names.escaped`, and has an apostrophe before it if a spreadsheet would
    run it; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    value = escaped(value)
    if not (value.startswith(STARTS) or _is_quoted(value)):
        return value
    return value if _is_number(value) else QUOTE + value


def as_it_was(cell: str) -> str:
    """The text that :func:`harmless` made a cell of."""
    return unescaped(unquoted(cell))


def unquoted(cell: str) -> str:
    """Likewise, names still escaped: for tables that hold valid Unicode alone."""
    return cell[1:] if _is_quoted(cell) else cell


def _is_quoted(cell: str) -> bool:
    return cell.startswith(QUOTE) and cell[1:].startswith((QUOTE, *STARTS))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and cell.isprintable()


def write_table(stream: IO[str], header: Sequence[str], rows: Iterable[Sequence | Mapping]) -> None:
    """Write a CSV of harmless cells.

    Args:
        stream: a text file that was opened with ``newline=""``.
        header: names of the columns.
        rows: as many values each; of mappings the values under the names of the header, blank where there is none.
    """
    writer = csv.writer(stream)
    writer.writerow(map(harmless, header))
    for row in rows:
        values = [row.get(name, "") for name in header] if isinstance(row, Mapping) else row
        writer.writerow(map(harmless, values))


def read_table(stream: IO[str]) -> list[dict[str, str]]:
    """The rows of a CSV that :func:`write_table` wrote."""
    header, *rows = [[as_it_was(cell) for cell in row] for row in csv.reader(stream)] or [[]]
    return [dict(zip(header, row, strict=False)) for row in rows if row]
