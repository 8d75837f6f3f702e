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
from hdxray_fast.terminal import visible, visible_lines

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
