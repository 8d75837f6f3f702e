"""Cells that a spreadsheet would run are written as text, and read back as they were."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.classify.labels import read_manifest
from hdxray_fast.classify.prediction_files import read_answers as read_answers
from hdxray_fast.classify.predictions import Predictions, write_predictions
from hdxray_fast.data.csv_cells import harmless, read_table, unquoted, write_table
from hdxray_fast.data.listing import list_images
from hdxray_fast.data.quarantine import Quarantined, write_quarantine
from hdxray_fast.reports.predictions import Prediction, read_predictions
from hdxray_fast.reports.predictions import write_predictions as write_reports

FORMULAS = ["=HYPERLINK(A1)", "+1+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(1)", "\t=1", "\r=1", "'=1", "''=1", "＝1"]
PLAIN = ["", "a", "-1", "+2.5e-3", "-0.25", "a=b", "'a'", "'", "O'Neil", "1.png"]


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN])
def test_a_cell_comes_back_as_it_was(text):
    written = harmless(text)
    assert unquoted(written) == text
    assert written == text if text in PLAIN else written.startswith("'")
    assert harmless(-3) == -3 and harmless(-0.5) == -0.5


def test_tables_are_harmless_and_come_back():
    stream = io.StringIO(newline="")
    write_table(stream, ("=a", "b"), [*((text, 1) for text in FORMULAS), {"b": "-x"}])
    stream.seek(0)
    cells = [cell for row in csv.reader(stream) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    stream.seek(0)
    rows = read_table(stream)
    assert [row["=a"] for row in rows] == [*FORMULAS, ""] and rows[-1]["b"] == "-x"


def test_what_the_package_writes_it_reads_as_it_was(tmp_path):
    """Predictions of a classifier as models to compare, as labels and as a list of files; reports; unreadable files."""
    names = ["=1+1.png", "-b.png", "@c.png", "+d.png"]
    present = [["=x"], [], ["=x"], []]
    scores = np.array([[0.75], [0.25], [0.5], [1e-3]])
    found = Predictions(names, scores, ["=x"], [0.5], present=present, patients=["=p", "-q", "+1", "r"])
    write_predictions(tmp_path / "predictions.csv", found, np.array([[1], [0], [1], [0]]))
    with open(tmp_path / "predictions.csv", newline="") as stream:
        assert not [cell for row in csv.reader(stream) for cell in row if cell.startswith(("=", "@"))]
    answers = read_answers(tmp_path / "predictions.csv")
    assert answers.images == names and answers.classes == ["=x"] and answers.patients == ["=p", "-q", "+1", "r"]
    assert answers.called[:, 0].tolist() == [True, False, True, False]
    assert [path.name for path in list_images(tmp_path / "predictions.csv")] == names
    table = read_manifest(tmp_path / "predictions.csv", classes=["label =x"])
    assert table.patients == ["=p", "-q", "+1", "r"] and table.paths[0].endswith("=1+1.png")

    made = [Prediction("=a", "- clear", "+ none", "en"), Prediction("b", "=1", None, "")]
    write_reports(tmp_path / "reports.csv", made)
    read = read_predictions(tmp_path / "reports.csv")
    assert [(row.id, row.generated) for row in read] == [("=a", "- clear"), ("b", "=1")]
    assert read[0].reference == "+ none" and "'=a,'- clear,'+ none" in (tmp_path / "reports.csv").read_text()

    write_quarantine(tmp_path / "bad.csv", [Quarantined("=cmd.dcm", "ImageReadError", "-")])
    with open(tmp_path / "bad.csv", newline="") as stream:
        assert read_table(stream) == [{"path": "=cmd.dcm", "error": "ImageReadError", "reason": "-"}]


def test_names_of_any_bytes_come_back_and_texts_that_look_like_their_escape_stay(tmp_path):
    """Only what may be a file's name is escaped: not a class, nor a sentence of a report."""
    names, odd = ["caf\udce9.png", r"caf\xe9.png", "=\udcff\r\n\x1b[2J\x9b.png"], r"c\xe9"
    found = Predictions(names, np.array([[0.75], [0.25], [0.5]]), [odd], [0.5], present=[[odd], [], [odd]])
    write_predictions(tmp_path / "predictions.csv", found)
    answers = read_answers(tmp_path / "predictions.csv")
    assert answers.images == names and answers.classes == [odd]
    made = [Prediction(name, odd, odd, "en") for name in names]
    for suffix in ("csv", "json"):
        write_reports(tmp_path / f"reports.{suffix}", made)
        assert read_predictions(tmp_path / f"reports.{suffix}") == made
    write_quarantine(tmp_path / "bad.csv", [Quarantined(names[0], "ImageReadError", f"lies beside {names[0]}")])
    with open(tmp_path / "bad.csv", newline="", encoding="utf-8") as stream:
        (row,) = read_table(stream, names=("path",))
    assert row["path"] == names[0] and row["reason"] == r"lies beside caf\xe9.png"


def test_no_cell_drives_a_terminal():
    stream = io.StringIO(newline="")
    cells = "\x1b[2J\n\x9b", "beside \x1b]0;\x07\x9b\udcff, in\n\ttwo lines"
    write_table(stream, ("image", "reason"), [cells], names=("image",))
    written = '\\x1b[2J\\x0a\\u009b,"beside \\x1b]0;\\x07\\x9b\\xff, in\n\ttwo lines"\r\n'
    assert stream.getvalue() == "image,reason\r\n" + written


def test_one_place_writes_csv_files():
    package, writer = Path(hx.__file__).parent, re.compile(r"csv\.(writer|DictWriter)|to_csv")
    found = {path.name for path in package.rglob("*.py") if writer.search(path.read_text())}
    assert found == {"csv_cells.py", "workbook.py"}  # which writes for the readers of CSV, into memory


def test_a_file_without_line_ends_is_not_read_as_one_line(tmp_path):
    from caps import limits

    from hdxray_fast.errors import NotAFileError

    with (tmp_path / "list.csv").open("wb") as stream:
        stream.write(b"source,reason\n")
        stream.truncate(5 << 30)  # takes no room on the disk
    words = r"list\.csv: has a line of more than 16 Mi characters"
    with (tmp_path / "list.csv").open(newline="") as stream, limits(), pytest.raises(NotAFileError, match=words):
        read_table(stream)
