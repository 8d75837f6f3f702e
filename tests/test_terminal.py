"""Names that hold control characters: written out in errors, warnings and prints, refused as names of columns."""

from __future__ import annotations

import pickle

import pytest

import hdxray_fast as hx
from hdxray_fast.classify.classifier import ClassifierConfig
from hdxray_fast.classify.labels import read_labels
from hdxray_fast.cli.main import main
from hdxray_fast.data.quarantine import first_unreadable
from hdxray_fast.errors import ConfigError, ImageReadError
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.terminal import aligned, are, counted, fitted, visible, visible_lines

EVIL = "a\x1b[2J\rb\nc\x9b\u202e\u200b\udcff.png"  # clears, returns, ends a line; C1; turns writing; nothing; a byte


def test_what_a_terminal_obeys_is_written_out():
    told = visible(EVIL)
    assert (
        told.isprintable() and told.encode() and told.startswith(r"a\x1b[2J\rb\nc\x9b\u202e") and told.endswith(".png")
    )
    for plain in ("", "a b.png", "肺.png", "Müller.dcm", "10 µm"):
        assert visible(plain) == plain
    assert visible_lines("one\x07\ntwo") == "one\\x07\ntwo"


def test_errors_and_lists_show_names_written_out(tmp_path, capsys):
    for error in (ConfigError(f"data: {EVIL}"), ImageReadError(EVIL, "is empty")):
        assert "\x1b" not in str(error) and r"a\x1b[2J" in str(error) and str(error).isprintable()
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert ImageReadError(EVIL, "").path == EVIL  # code finds the file by its name
    assert "\x1b" not in first_unreadable([(EVIL, "is empty")], 1, "list.csv")
    with pytest.raises(ImageReadError, match=r"\\x1b\[2J"):
        hx.read_canvas(tmp_path / "\x1b[2J.png")
    assert main(["embed", str(tmp_path / "\x1b[2J"), "--weights", "x", "--out", str(tmp_path / "f.parquet")]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("read", [read_labels, read_studies])
def test_columns_and_classes_with_control_characters_are_refused(tmp_path, read):
    (tmp_path / "t.csv").write_text("image,report,mass\x1b[2J\na.png,clear,1\n")
    with pytest.raises(ConfigError, match=r"t\.csv: the name of its column 3 holds a control character") as refused:
        read(tmp_path / "t.csv")
    assert "\x1b" not in str(refused.value)
    with pytest.raises(hx.ArgumentError, match="control characters"):
        ClassifierConfig(["mass\x1b[2J"])


TABLE = [
    ["", "AUROC", "F1", "by chance"],
    ["no finding", "0.812 (0.741-0.873)", "0.5", ""],
    ["mass", "N/A", "0.25", "0.1"],
]


def test_one_is_counted_as_one():
    units = ("step", "study", "class", "day", "patch", "epoch")
    assert [counted(1, unit) for unit in units] == ["1 step", "1 study", "1 class", "1 day", "1 patch", "1 epoch"]
    assert [counted(2, unit) for unit in units] == [
        "2 steps",
        "2 studies",
        "2 classes",
        "2 days",
        "2 patches",
        "2 epochs",
    ]
    assert counted(1234, "study") == "1,234 studies" and (are(1, "file"), are(0, "file")) == (
        "1 file is",
        "0 files are",
    )


def test_columns_that_do_not_fit_come_below_beside_the_names():
    assert aligned(TABLE, 60) == [
        "                          AUROC    F1  by chance",
        "no finding  0.812 (0.741-0.873)   0.5",
        "mass                        N/A  0.25        0.1",
    ]
    assert aligned(TABLE, 40) == [
        "                          AUROC    F1",
        "no finding  0.812 (0.741-0.873)   0.5",
        "mass                        N/A  0.25",
        "            by chance",
        "no finding",
        "mass              0.1",
    ]
    assert len(aligned(TABLE, 1)) == 9  # a column is never cut
    assert aligned(TABLE) == aligned(TABLE, 10**6)  # stdout is no terminal here


def test_text_is_fitted_to_a_terminal_and_left_alone_elsewhere(monkeypatch):
    markdown = "| class | positive | difference (95 %) |\n|---|---|---|\n| mass | 12 | +0.019 (-0.017 to +0.058) |"
    text = f"{markdown}\n\n  a sentence that goes on and on and on"
    assert fitted(text) == text
    assert fitted(text, 80) == text
    lines = fitted(text, 30).splitlines()
    assert max(map(len, lines)) <= 35 and lines[:2] == ["class  positive", "mass         12"]
    assert lines[2:4] == [f"class  {'difference (95 %)':>25}", "mass   +0.019 (-0.017 to +0.058)"]
    assert lines[4:] == ["", "  a sentence that goes on and", "    on and on"]
    uneven = "| a | b |\n|---|---|\n| one | two | and a cell with | in it |"
    assert fitted(uneven, 20).split() == uneven.split()  # nothing is lost of what is no table
