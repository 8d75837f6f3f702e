"""Results are files of the kind that their ending says, or lie in a folder under the usual name."""

from __future__ import annotations

import csv
import json

import pytest

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.data import result_files, workbook
from hdxray_fast.data.result_files import TABLES, file_named_by, refuse_other_table, write_for_people, write_rows
from hdxray_fast.data.table_text import open_text_table

HEADER = ["image", "Oedema", "present", "label Oedema"]
ROWS = [["a.png", 0.25, "", None], ["b\udce9.png", 0.123456789012345678, "Oedema", 1], ["=c.png", 1.0, "Oedema", 0]]


def test_a_name_says_the_kind_and_a_folder_takes_the_usual_name(tmp_path):
    (tmp_path / "there").mkdir()
    assert file_named_by(tmp_path / "x.JSON", "u.csv") == tmp_path / "x.JSON"
    assert file_named_by(tmp_path / "there", "u.csv") == tmp_path / "there" / "u.csv"
    assert file_named_by(f"{tmp_path}/new/", "u.csv") == tmp_path / "new" / "u.csv"
    told = "^out: new does not say .* are files that end in .csv, .json, .parquet and .xlsx, such as u.csv, and folders"
    with pytest.raises(hx.ConfigError, match=told + ", a new one with a slash behind its name$"):
        file_named_by("new", "u.csv")
    with pytest.raises(hx.ConfigError, match=r"^features: .* accepted is a file that ends in .parquet, such as \S+$"):
        file_named_by(tmp_path / "f.csv", "f.parquet", (".parquet",), "features", folders=False)
    with pytest.raises(hx.ConfigError, match=r"^features: .*there is a folder"):
        file_named_by(tmp_path / "there", "f.parquet", (".parquet",), "features", folders=False)
    assert not (tmp_path / "new").exists()  # nothing is made while names are looked at


@pytest.mark.parametrize("ending", [".csv", ".json", ".parquet"])
def test_each_kind_holds_the_same_rows(ending, tmp_path):
    path = tmp_path / f"rows{ending}"
    write_rows(path, HEADER, iter(ROWS), names=("image",))
    if ending == ".csv":
        found = [list(row.values()) for row in csv.DictReader(path.open(encoding="utf-8"))]
        assert found[1] == [r"b\xe9.png", "0.12345678901234568", "Oedema", "1"]
        assert [row[0] for row in found] == ["a.png", r"b\xe9.png", "'=c.png"]
        return
    if ending == ".json":
        found = json.loads(path.read_text(encoding="utf-8"))
    else:
        found = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    wanted = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    wanted[1]["image"] = r"b\xe9.png"  # as names of any bytes are written
    assert found == wanted
    write_rows(path, HEADER, iter([]))
    again = (
        json.loads(path.read_text()) if ending == ".json" else pytest.importorskip("pyarrow.parquet").read_table(path)
    )
    assert len(again) == 0


def test_a_workbook_holds_numbers_and_text_as_they_are(tmp_path, monkeypatch):
    """In any country: no separator, no encoding, no decimal sign has to be told; and no text is run."""
    openpyxl, path = pytest.importorskip("openpyxl"), tmp_path / "rows.xlsx"
    rows = [*ROWS, ["ü_x0041_\x01.png", float("nan"), "<&>", True], [" 007 ", 1e-9, "2024-01-02", 123456789]]
    write_rows(path, HEADER, iter(rows), names=("image",))
    sheet = openpyxl.load_workbook(path).active
    assert [list(row) for row in sheet.values] == [
        HEADER,
        ["a.png", 0.25, None, None],
        [r"b\xe9.png", 0.123457, "Oedema", 1],
        ["=c.png", 1.0, "Oedema", 0],
        [r"ü_x0041_\x01.png", "nan", "<&>", True],
        [" 007 ", 1e-9, "2024-01-02", 123456789],
    ]
    assert sheet["A4"].data_type == "s"  # no formula
    refuse_other_table(path, ["image"], "predictions")
    with pytest.raises(hx.ConfigError, match=r"rows\.xlsx would be written over, and is no table of labels"):
        refuse_other_table(path, ["label"], "labels")
    written = path.read_bytes()
    monkeypatch.setattr(workbook, "MOST_ROWS", 7)
    for wrong, what in ((["a" * 32768, 0.5, "", None], "32767 characters"), (rows[0], "7 rows")):
        with pytest.raises(hx.ConfigError, match=rf"^out: .* {what} .*\.csv"):
            write_rows(path, HEADER, [wrong, *rows, wrong])
    assert path.read_bytes() == written


@pytest.mark.parametrize("ending", TABLES)
def test_a_table_of_something_else_is_not_written_over(ending, tmp_path):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"mine{ending}"
    refuse_other_table(path, ("image", "present"), "predictions")  # nothing is there
    for rows in (ROWS, []):
        write_rows(path, HEADER, iter(rows), names=("image",))
        refuse_other_table(path, ("image", "present"), "predictions")
    write_rows(path, ["image", "patient", "Oedema"], iter([["a.png", "7", 1]]))
    with pytest.raises(hx.ConfigError, match=r"mine.* would be written over, and is no table of predictions; choose"):
        refuse_other_table(path, ("image", "present"), "predictions")
    path.write_bytes(b"\xff\x00 no table")
    with pytest.raises(hx.ConfigError, match=r"mine.* would be written over, and .* table of predictions"):
        refuse_other_table(path, ("image", "present"), "predictions")


def test_predictions_do_not_replace_labels(tmp_path, monkeypatch, capsys):
    pytest.importorskip("jsonargparse")
    labels = tmp_path / "labels.csv"
    labels.write_text("image,patient,Oedema\na.png,7,1\n")
    assert main(["predict", "x", "--model", "m", "--out", str(labels)]) == 2  # before the model is looked for
    assert "is no table of predictions" in capsys.readouterr().err
    assert labels.read_text().endswith("a.png,7,1\n")


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["predict", "x", "--model", "m", "--out", "preds"], ".csv, .json, .parquet and .xlsx"),
        (["predict", "x", "--model", "m", "--out", "preds.xls"], ".csv, .json, .parquet and .xlsx"),
        (["embed", "x", "--weights", "m", "--out", "feats.json"], ".parquet and .csv"),
        (["export", "m", "--out", "encoder.pt"], ".onnx"),
    ],
)
def test_other_endings_are_refused_before_anything_else_is_looked_at(words, known, tmp_path, monkeypatch, capsys):
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hdxray-fast: --out: {words[-1]} does not say") and f" in {known}, such as" in error
    assert not list(tmp_path.iterdir())


def test_a_csv_has_a_workbook_beside_it_for_people_and_none_that_is_older(tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    path = tmp_path / "rows.csv"
    assert write_for_people(path, ["name", "number"], [["Größe", 0.5], ["=b", 1]]) == tmp_path / "rows.xlsx"
    with open_text_table(tmp_path / "rows.xlsx") as (stream, _):
        assert list(csv.reader(stream)) == [["name", "number"], ["Größe", "0.5"], ["=b", "1"]]
    assert "Größe,0.5" in path.read_text(encoding="utf-8")
    monkeypatch.setattr(result_files, "find_spec", lambda name: None)  # as if openpyxl were not installed
    assert write_for_people(path, ["name"], [["other"]]) == path
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]
