"""A CSV file as rows, whole or not at all."""

from __future__ import annotations

import csv
from pathlib import Path

from ..data.columns import hidden_in
from ..data.table_text import open_text_table
from ..errors import ConfigError
from ..regular_files import lines, reason_of


def read_rows(path: Path, argument: str = "data") -> list[dict[str, str]]:
    """The rows of a CSV file, packed or not, as dictionaries; blank lines are passed over. Errors name ``argument``.

    Raises:
        ConfigError: it is missing or no CSV, or a row has more or fewer fields than the header.
    """
    try:
        with open_text_table(path) as (stream, separator):
            rows = []
            reader = csv.DictReader(lines(stream, path), strict=True, delimiter=separator)
            for row in reader:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"{argument}: {path}, line {reader.line_num}: {'more' if None in row else 'fewer'} fields than "
                        'the header has; a text with the separator of columns, quotes or line ends stands in "quotes"'
                    )
                rows.append(row)
            if hidden := hidden_in(reader.fieldnames or ()):
                raise ConfigError(
                    f"{argument}: {path}: the name of its column {hidden} holds a control character or an invisible one"
                )
            return rows
    except (OSError, csv.Error) as error:
        raise ConfigError(f"{argument}: {path} is not a readable CSV file ({reason_of(error)})") from error
