"""A CSV file as rows, whole or not at all."""

from __future__ import annotations

import csv
from pathlib import Path

from ..data.columns import hidden_in, twins_in
from ..data.table_text import open_text_table
from ..errors import ConfigError
from ..regular_files import lines, reason_of


class Row(dict[str, str]):
    """A row by the names of its columns.

    Attributes:
        number: of the row in its file, where the header is mostly 1; blank lines count.
    """

    number: int


def read_rows(path: Path, argument: str = "data") -> list[Row]:
    """The rows of a CSV file, packed or not; blank lines are passed over. Errors name ``argument``.

    Raises:
        ConfigError: it is missing or no CSV, two columns have one name, or a row has more or fewer fields than the
            header.
    """
    try:
        with open_text_table(path) as (stream, separator):
            header: list[str] = []
            rows: list[Row] = []
            reader = csv.reader(lines(stream, path), strict=True, delimiter=separator)
            for number, cells in enumerate(reader, start=1):
                if not cells:
                    continue
                if not header:
                    header = _checked_header(cells, f"{argument}: {path}")
                    continue
                if len(cells) != len(header):
                    many = "more" if len(cells) > len(header) else "fewer"
                    raise ConfigError(
                        f"{argument}: {path}, line {reader.line_num}: {many} fields than the header has; a text with "
                        'the separator of columns, quotes or line ends stands in "quotes"'
                    )
                rows.append(Row(zip(header, cells, strict=True)))
                rows[-1].number = number
            return rows
    except (OSError, csv.Error) as error:
        raise ConfigError(f"{argument}: {path} is not a readable CSV file ({reason_of(error)})") from error


def _checked_header(names: list[str], where: str) -> list[str]:
    if hidden := hidden_in(names):
        raise ConfigError(f"{where}: the name of its column {hidden} holds a control character or an invisible one")
    if twins := twins_in(map(str.strip, names)):
        raise ConfigError(f"{where}: its columns {twins[0]} and {twins[1]} have one name; rename or remove one")
    return names
