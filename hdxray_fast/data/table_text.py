"""Tables as spreadsheets of many countries write them: which encoding and which separator a file has is found out here,
for all that is read from users."""

from __future__ import annotations

import codecs
import csv
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from itertools import chain
from typing import IO

from ..errors import NotAFileError
from ..packed_tables import open_table
from ..regular_files import UTF_16
from ..terminal import visible
from .columns import PATH_COLUMNS, PATIENT_COLUMNS, find_column
from .workbook import NO_XLSX, XLSX, workbook_as_csv

TABLE_FILES = (".csv", ".xlsx")  # what folders, images and archives are told from by its name
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
HEADER = (*PATH_COLUMNS, *PATIENT_COLUMNS, "id", "study_id", "label", "split", "report", "generated")
WESTERN = "cp1252"  # what Excel writes as "CSV" in western Europe and the Americas
# In Western languages letters that are not ASCII stand between others; GBK, Shift JIS, Cyrillic and Greek have runs
FOREIGN_RUN = re.compile(rb"[\x80-\xff]{4}")
NEITHER = "is not UTF-8 throughout, nor is it Windows-1252; save it as UTF-8"
AT_ONCE, MOST_HEADER = 1 << 20, 1 << 16  # bytes; characters of a first line


@contextmanager
def open_text_table(path: str | os.PathLike) -> Iterator[tuple[IO[str], str]]:
    """A table's text from its first line on, and the separator of its columns.

    A workbook's first sheet is given as CSV. UTF-8 with or without its mark and UTF-16 with its mark are told by their
    bytes. Any other text is read as Windows-1252 if it can be that, with a warning that says so. The separator is told
    by the first line alone.

    Args:
        path: of the file, packed or not.

    Raises:
        MissingDependencyError: it is a workbook, and openpyxl is not installed.
        NotAFileError, OSError: as :func:`.packed_tables.open_table`; or the encoding or the separator cannot be told.
    """
    content, encoding = _read(path)
    with TextIOWrapper(content, encoding=encoding, newline="") as stream:
        separator = _separator_of(_header(stream), path)
        if encoding == WESTERN:
            warnings.warn(
                f"{visible(path)}: is not UTF-8 and was read as Windows-1252 (western European); if letters come out "
                "wrong, save it as UTF-8",
                stacklevel=1,  # one line, whoever asks and how often
            )
        stream.seek(0)
        yield stream, separator


def _read(path: str | os.PathLike) -> tuple[BytesIO, str]:
    """All of a table, which is read once (it may have to be unpacked), and its encoding."""
    content = BytesIO()
    with open_table(path) as file:
        part = file.read(AT_ONCE)
        if part.startswith(XLSX):
            return workbook_as_csv(path, file if file.seekable() else BytesIO(part + file.read())), "utf-8"
        if part.startswith(NO_XLSX):
            raise NotAFileError(path, "is a workbook of Excel 2003, or under a password; save it as .xlsx or CSV")
        encoding = "utf-16" if part.startswith(UTF_16) else "utf-8-sig"
        decoder, ascii_so_far = codecs.getincrementaldecoder(encoding)(), True
        while True:
            content.write(part)
            try:
                text = decoder.decode(part, final=not part)
            except UnicodeDecodeError as error:
                if encoding == "utf-16":
                    raise NotAFileError(path, f"is not UTF-16, as its first bytes say ({error.reason})") from None
                if not (ascii_so_far and error.object[: error.start].isascii()):
                    raise NotAFileError(path, NEITHER) from None  # it began as UTF-8, and is damaged
                break
            if "\0" in text:
                raise NotAFileError(path, "holds NUL, which no text does")
            if not part:
                content.seek(0)
                return content, encoding
            ascii_so_far = ascii_so_far and text.isascii()
            part = file.read(AT_ONCE)
        content.seek(-min(len(part) + 3, content.tell()), os.SEEK_END)
        rest = content.read()  # with letters that the part before it may end within
        while rest:
            # Other languages' encodings are refused: their letters would be read as others
            if b"\0" in rest or FOREIGN_RUN.search(rest) or not _is_western(rest):
                raise NotAFileError(path, NEITHER)
            part = file.read(AT_ONCE)
            content.write(part)
            rest = part and rest[-3:] + part
    content.seek(0)
    return content, WESTERN


def _is_western(part: bytes) -> bool:
    try:
        part.decode(WESTERN)
    except UnicodeDecodeError:
        return False
    return True


def _header(stream: IO[str]) -> str:
    """The first line; where it ends within quotes, with those after it."""
    header = stream.readline(MOST_HEADER)
    while header.count('"') % 2 and len(header) < MOST_HEADER and (more := stream.readline(MOST_HEADER - len(header))):
        header += more
    return header


def _separator_of(header: str, path: str | os.PathLike) -> str:
    """The one of ``SEPARATORS`` that stands in a header outside of quotes, or that makes names out of it."""
    outside = re.sub('"[^"]*"', "", header)
    found = [sign for sign in SEPARATORS if sign in outside]
    if len(found) > 1:
        rows = {sign: csv.reader(header.splitlines(keepends=True), delimiter=sign) for sign in found}
        named = [sign for sign, reader in rows.items() if find_column(chain(*reader), HEADER) is not None]
        if len(named) != 1:
            signs = " and ".join(SEPARATORS[sign] for sign in found)
            raise NotAFileError(
                path, f'has {signs} in its first line, and which of them part its columns is not clear; put "quotes" '
                "around names that hold one"
            )  # fmt: skip
        found = named
    return found[0] if found else ","
