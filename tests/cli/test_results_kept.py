"""Whatever fails while results are written, those that are computed are not lost."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from pathlib import Path

import pytest
from every_command import Commands

from hdxray_fast.classify import evaluation, predictions
from hdxray_fast.cli.main import main
from hdxray_fast.errors import TrainingError
from hdxray_fast.files import written_somewhere

for package in ("jsonargparse", "pandas", "sklearn", "tqdm"):
    pytest.importorskip(package)

NAMES = [f"{number}.png" for number in range(8)]


def full_at(place: Path, monkeypatch, module) -> None:
    """The disk of one folder is full when predictions are written."""
    write = module.write_predictions

    def refusing(path, *more):
        if Path(path).parent == place:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, *more)

    monkeypatch.setattr(module, "write_predictions", refusing)


def kept(said: str) -> list[dict[str, str]]:
    """The rows of the file that a message names."""
    place = Path(re.search(r"are not lost: they are in (\S+)", said)[1])
    assert place.parent.stat().st_mode & 0o077 == 0  # probabilities of patients: for their owner alone
    with place.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    place.unlink()
    place.parent.rmdir()
    return rows


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_predictions_go_elsewhere_where_they_cannot_be_written(command, tmp_path, monkeypatch, capsys):
    commands = Commands(tmp_path, NAMES)
    out = commands.out(command)
    place, module = (out, predictions) if command == "evaluate" else (out.parent, evaluation)
    full_at(place, monkeypatch, module)
    assert main([*commands.words(command), "--workers", "0"]) == 2
    said = capsys.readouterr().err
    assert "predictions" in said and "cannot be written (No space left on device)" in said
    assert len(kept(said)) == len(NAMES)


def test_a_picture_that_cannot_be_made_costs_no_number(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr(predictions, "plot_curves", fails)
    monkeypatch.setattr(predictions, "write_error_sheet", fails)
    commands = Commands(tmp_path, NAMES)
    with pytest.warns(UserWarning, match=r"png: left out, it cannot be made \(RuntimeError: no font\)"):
        assert main([*commands.words("evaluate"), "--workers", "0"]) == 0
    out = commands.out("evaluate")
    assert json.loads((out / "metrics.json").read_text())["images"] == len(NAMES)
    assert (out / "predictions.csv").is_file()


def test_metrics_that_fail_cost_no_prediction(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no metric")

    monkeypatch.setattr(predictions, "evaluate_predictions", fails)
    commands = Commands(tmp_path, NAMES)
    with pytest.raises(RuntimeError, match="no metric"):
        main([*commands.words("evaluate"), "--workers", "0"])
    with (commands.out("evaluate") / "predictions.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(NAMES)


@pytest.mark.slow
def test_reports_go_elsewhere_and_do_without_pictures(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    from hdxray_fast.reports import writing

    def fails(*_, **__):
        raise RuntimeError("no font")

    commands = Commands(tmp_path, NAMES)
    assert main([*commands.words("report train"), "--workers", "0"]) == 0
    monkeypatch.setattr(writing, "draw_attention", fails)
    words = [*commands.words("report generate"), "--workers", "0"]
    assert main(words) == 0
    assert "0.report.png: left out, it cannot be made (RuntimeError: no font)" in capsys.readouterr().err
    full_at(commands.out("report generate"), monkeypatch, writing)
    assert main(words) == 2
    assert len(kept(capsys.readouterr().err)) == len(NAMES)


def test_nowhere_to_write_is_said(tmp_path):
    def fails(path):
        raise ValueError("no such text")

    with pytest.raises(
        TrainingError, match=r"written \(ValueError: no such text\), nor anywhere else; the numbers are"
    ):
        written_somewhere(tmp_path / "a.csv", fails, "the numbers")
