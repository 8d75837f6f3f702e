"""A table as an Excel workbook: numbers are numbers and text is text in every country, whatever its separators."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape, unescape

from ..errors import ConfigError
from ..regular_files import open_regular
from .csv_cells import rounded

MOST_ROWS, MOST_COLUMNS, MOST_TEXT = 1 << 20, 1 << 14, 32767  # of a sheet; characters of a cell
MOST_HEADER = 4 << 20  # bytes of a sheet that hold a first row
SHEET = "xl/worksheets/sheet1.xml"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"
BEGIN = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
AROUND = {
    "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{KIND}.sheet.main+xml"/>'
    f'<Override PartName="/{SHEET}" ContentType="{KIND}.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}"><sheets>'
    '<sheet name="Table" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
}
CODED = re.compile("_(?=x[0-9A-Fa-f]{4}_)")  # what Excel would take for a character of this number
NO_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def write_workbook(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a table as the one sheet of a workbook; text is no formula there, whatever it begins with.

    Args:
        path: of the file, which is written over.
        header: of the columns.
        rows: as many values each: text, truth values, ``None`` for an empty cell, and numbers, which are
            :func:`.csv_cells.rounded`: no command reads
            a workbook.

    Raises:
        ConfigError: the table, or a text in it, is larger than workbooks can be.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in AROUND.items():
            archive.writestr(_member(name), BEGIN + content)
        with archive.open(_member(SHEET), "w", force_zip64=True) as sheet:
            sheet.write(f'{BEGIN}<worksheet xmlns="{MAIN}"><sheetData>'.encode())
            for line in _lines(header, rows):
                sheet.write(line.encode())
            sheet.write(b"</sheetData></worksheet>")


def workbook_header(path: Path) -> list[str]:
    """Names of the columns of a workbook that :func:`write_workbook` wrote.

    Raises:
        OSError, ValueError, BadZipFile: it is none.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        try:
            head = archive.open(SHEET).read(MOST_HEADER).decode("utf-8", "replace")
        except KeyError:
            raise ValueError("it holds no such sheet") from None
    row = head.partition("<row>")[2].partition("</row>")[0]
    return [unescape(name) for name in re.findall(r'<t xml:space="preserve">([^<]*)</t>', row)]


def _member(name: str) -> zipfile.ZipInfo:
    """With one time for all, so that the same table is the same file."""
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _lines(header: Sequence[str], rows: Iterable[Sequence]) -> Iterator[str]:
    if len(header) > MOST_COLUMNS:
        raise ConfigError(f"out: {len(header)} columns are more than the {MOST_COLUMNS} of a workbook; write a .csv")
    yield f"<row>{''.join(map(_cell, header))}</row>"
    for number, row in enumerate(rows, start=2):
        if number > MOST_ROWS:
            raise ConfigError(f"out: the table has more than the {MOST_ROWS} rows of a workbook; write a .csv")
        yield f"<row>{''.join(map(_cell, row))}</row>"


def _cell(value: object) -> str:
    if value is None or value == "":
        return "<c/>"
    if isinstance(value, bool):
        return f'<c t="b"><v>{int(value)}</v></c>'
    if isinstance(value, int):
        return f"<c><v>{value}</v></c>"
    if isinstance(value, float) and math.isfinite(value):
        return f"<c><v>{rounded(value)!r}</v></c>"
    text = str(value)
    if len(text) > MOST_TEXT:
        raise ConfigError(f"out: a text has more than the {MOST_TEXT} characters of a workbook's cell; write a .csv")
    text = NO_XML.sub("\ufffd", CODED.sub("_x005F_", text))
    return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(text)}</t></is></c>'
