"""A CSV file as rows, whole or not at all."""

from __future__ import annotations

import csv
import gzip
import zlib
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path

from ..data.columns import hidden_in
from ..errors import ConfigError
from ..regular_files import lines, open_regular, reason_of

UNPACKED, MOST_RATIO = 64 << 20, 100  # characters that a gzipped table may unpack to, and for each byte that it has


def read_rows(path: Path, argument: str = "data") -> list[dict[str, str]]:
    """The rows of a CSV file, gzipped or not, as dictionaries; blank lines are passed over. Errors name ``argument``.

    Raises:
        ConfigError: it is missing, not UTF-8, or no CSV, or a row has more or fewer fields than the header.
    """
    try:
        with ExitStack() as opened:
            file = opened.enter_context(open_regular(path))
            plain = opened.enter_context(gzip.open(file)) if path.suffix == ".gz" else file
            stream = opened.enter_context(TextIOWrapper(plain, newline="", encoding="utf-8-sig"))
            rows = []
            most = UNPACKED + MOST_RATIO * path.stat().st_size if path.suffix == ".gz" else None
            reader = csv.DictReader(lines(stream, path, most), strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"{argument}: {path}, line {reader.line_num}: {'more' if None in row else 'fewer'} fields than "
                        'the header has; a text with commas, quotes or line ends stands in "quotes"'
                    )
                rows.append(row)
            if hidden := hidden_in(reader.fieldnames or ()):
                raise ConfigError(
                    f"{argument}: {path}: the name of its column {hidden} holds a control character or an invisible one"
                )
            return rows
    except UnicodeDecodeError as error:
        raise ConfigError(f"{argument}: {path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise ConfigError(f"{argument}: {path} is not a readable CSV file ({reason_of(error)})") from error
