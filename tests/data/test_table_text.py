"""Tables as spreadsheets write them elsewhere: one door reads them for every command, or says what it cannot tell."""

from __future__ import annotations

import codecs
import datetime
import gzip
import sys
import warnings
import zipfile

import pytest

import hdxray_fast as hx
from hdxray_fast.classify.label_csv import read_csv
from hdxray_fast.classify.labels import read_manifest
from hdxray_fast.classify.prediction_files import read_answers
from hdxray_fast.data import table_text, workbook
from hdxray_fast.data.listing import list_images, manifest_rows
from hdxray_fast.packed_tables import open_table
from hdxray_fast.reports.compare import holds_reports
from hdxray_fast.reports.csv_rows import read_rows

pytest.importorskip("pandas")
DAY = datetime.datetime(2024, 1, 31)
TEXT = 'image,patient,report\nä.png,Müller,"klar, frei; o.B."\nb.png,Özil,"eins\nzwei"\n'
ROWS = [
    {"image": "ä.png", "patient": "Müller", "report": "klar, frei; o.B."},
    {"image": "b.png", "patient": "Özil", "report": "eins\nzwei"},
]


def spreadsheet(separator: str, encoding: str) -> bytes:
    text = TEXT.replace(",", separator).replace(f"klar{separator}", "klar,").replace("\n", "\r\n")
    return text.replace("eins\r\n", "eins\n").encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_encodings_and_separators(tmp_path, encoding, separator):
    path = tmp_path / "table.csv"
    path.write_bytes(spreadsheet(separator, encoding))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        frame, rows, listed = read_csv(path), read_rows(path), manifest_rows(path, tmp_path)
    assert frame.to_dict("records") == rows == ROWS
    assert listed == {str(tmp_path / row["image"]): row["patient"] for row in ROWS}
    assert len(told) == 3 * (encoding == "cp1252")
    assert all("table.csv: is not UTF-8 and was read as Windows-1252" in str(each.message) for each in told)
    assert not holds_reports(path)


def test_a_table_is_unpacked_once(tmp_path, monkeypatch):
    path, opened = tmp_path / "table.csv.gz", []
    path.write_bytes(gzip.compress(spreadsheet(";", "cp1252")))
    monkeypatch.setattr(table_text, "open_table", lambda path: opened.append(path) or open_table(path))
    with pytest.warns(UserWarning, match="Windows-1252"):
        assert read_rows(path) == ROWS
    assert opened == [path]


def test_a_workbook_is_read_as_a_csv_is(tmp_path):
    """Cells are text as a spreadsheet shows them; empty rows and columns are passed over."""
    openpyxl, path = pytest.importorskip("openpyxl"), tmp_path / "labels.xlsx"
    book = openpyxl.Workbook()
    for row in (
        ["Bild", "Patient", "Ödem; Stauung", "score", "day", "note"],
        [],
        ["ä.png", "007", 1, 0.5, DAY, "=1,2"],
    ):
        book.active.append(row)
    book.active.append(["b.png", 8, True, 2.0, DAY.replace(hour=9), None, None])
    book.active["F3"].data_type = "s"  # a text, not a formula
    book.save(path)
    frame = read_csv(path)
    assert (
        frame.astype(object).where(frame.notna(), "").to_dict("records")
        == read_rows(path)
        == [
            {
                "Bild": "ä.png",
                "Patient": "007",
                "Ödem; Stauung": "1",
                "score": "0.5",
                "day": "2024-01-31",
                "note": "=1,2",
            },
            {
                "Bild": "b.png",
                "Patient": "8",
                "Ödem; Stauung": "True",
                "score": "2",
                "day": "2024-01-31 09:00:00",
                "note": "",
            },
        ]
    )
    assert manifest_rows(path, tmp_path) == {str(tmp_path / "ä.png"): "007", str(tmp_path / "b.png"): "8"}
    assert list_images(path) == [tmp_path / "ä.png", tmp_path / "b.png"]
    book.create_sheet("more")
    book.save(path)
    with pytest.warns(UserWarning, match=r"labels.xlsx: its first sheet was read, not the other 1$"):
        assert len(read_rows(path)) == 2


def test_what_is_no_workbook_is_named(tmp_path, monkeypatch):
    openpyxl, path = pytest.importorskip("openpyxl"), tmp_path / "labels.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.xml", "<a/>")
    for content, wrong in (
        (path.read_bytes(), r"is no Excel workbook that can be read \(.*Content_Types"),
        (path.read_bytes()[:60], "is no Excel workbook that can be read"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "is a workbook of Excel 2003, or under a password; save it as .xlsx or CSV"),
    ):
        path.write_bytes(content)
        with pytest.raises(hx.ConfigError, match=rf"labels.xlsx.*{wrong}"):
            read_rows(path)
    openpyxl.Workbook().save(path)
    monkeypatch.setattr(workbook, "UNPACKED", -(10**9))
    with pytest.raises(hx.ConfigError, match="unpacks to more than"):
        read_rows(path)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(hx.MissingDependencyError, match=r"Excel workbooks need openpyxl: .*; or use a .csv"):
        read_rows(path)


def test_what_is_read_as_windows_1252_is_said_once(tmp_path, recwarn):
    path = tmp_path / "table.csv"
    path.write_bytes(spreadsheet(";", "cp1252"))
    warnings.simplefilter("default")  # as outside of tests
    for _ in range(3):
        read_rows(path)
    assert len(recwarn) == 1


@pytest.mark.parametrize("read", [read_csv, read_rows, lambda path: manifest_rows(path, path.parent)])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,report\na.png,双肺清晰\n".encode("gbk"), "is not UTF-8 throughout, .* Windows-1252; save it as UTF-8"),
        ("image,report\na.png,лёгкие\n".encode("cp1251"), "is not UTF-8 throughout, nor is it Windows-1252"),
        (b"image,report\na.png,\x81\n", "is not UTF-8 throughout, nor is it Windows-1252"),
        ("image,report\nä.png,".encode() + b"\xe4\n", "is not UTF-8 throughout"),
        (codecs.BOM_UTF8 + "image,report\nä.png,".encode() + b"\xe4\n", "is not UTF-8 throughout"),
        ("image,report\na.png,b\n".encode("utf-16")[:-1], "is not UTF-16, as its first bytes say"),
        ("image,report\na.png,b\n".encode("utf-16-le"), "holds NUL"),
        (b"image,report\na.png,\xe4" + bytes(100), "nor is it Windows-1252"),
        (codecs.BOM_UTF16_LE + bytes(100), "holds NUL"),
        (b"foto,mass;knoten\na.png,1;0\n", "has commas and semicolons in its first line"),
        (b"image;path,file\na.png;1\n", "has commas and semicolons in its first line|no column"),
    ],
)
@pytest.mark.parametrize("at_once", [5, 1 << 20])
def test_what_cannot_be_told_is_refused(tmp_path, monkeypatch, read, content, message, at_once):
    monkeypatch.setattr(table_text, "AT_ONCE", at_once)
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(hx.ConfigError, match=rf"table\.csv.*({message})"):
        read(path)


@pytest.mark.parametrize(
    ("header", "separator"),
    [
        ("image,mass; left,mass\tright", ","),
        ("image;mass, left", ";"),
        ('"image";"mass, left"', ";"),
        ('"finding, if any\nor none";x', ";"),
        ("image", ","),
        ("", ","),
    ],
)
def test_the_first_line_tells_the_separator(tmp_path, header, separator):
    path = tmp_path / "table.csv"
    path.write_text(header + "\n1;2,3\n")
    with table_text.open_text_table(path) as (stream, found):
        assert (found, stream.read()) == (separator, header + "\n1;2,3\n")


def test_decimal_commas(tmp_path):
    """They are numbers where semicolons part the columns, but not in ids and names of files."""
    path = tmp_path / "predictions.csv"
    path.write_text("image;patient;mass;label mass\n1,5;2,5;0,25;1,0\nb;3;1;0\nc;4;2,5E-3;0\n")
    answers = read_answers(path)
    assert answers.images == ["1,5", "b", "c"] and answers.patients == ["2,5", "3", "4"]
    assert answers.probabilities[:, 0].tolist() == [0.25, 1, 0.0025] and answers.labels[:, 0].tolist() == [1, 0, 0]
    path.write_text('image,patient,mass\na,1,"1,0"\nb,2,0\n')
    with pytest.raises(hx.ConfigError, match="column 'mass' holds a text"):
        read_manifest(path, classes=["mass"])


def test_reports_are_told_by_their_header(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('id;"Generated";x\n1;klar;2\n')
    assert holds_reports(path)
