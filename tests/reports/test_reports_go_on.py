"""Reports that a killed run had written are not written again, and the end is that of a run left alone."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from film_makers import draw_film
from report_makers import write_csv
from report_model_makers import ENGLISH, QUICK, save_small_encoder

pytest.importorskip("transformers")

from hdxray_fast.errors import ConfigError
from hdxray_fast.reports import writing
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.reports.journal import JOURNAL
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.reports.run import run_report_training
from hdxray_fast.reports.saving import load_report_model
from hdxray_fast.reports.writing import write_reports
from hdxray_fast.reports.writing_options import WritingOptions

STUDIES = 9  # of the test, the third of which cannot be read


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reports")
    encoder = save_small_encoder(root / "encoder")
    rows = []
    for number in range(12 + STUDIES):
        cv2.imwrite(str(root / f"s{number}.png"), draw_film(number))
        split = "test" if number >= 12 else "val" if number >= 10 else "train"
        row = {"id": f"s{number}", "image": f"s{number}.png", "report": ENGLISH[number % 4], "patient": f"p{number}"}
        rows.append({**row, "split": split})
    (root / "s14.png").write_bytes(b"no picture")
    data = write_csv(root / "studies.csv", rows)
    config = ReportConfig(data=str(data), out=str(root / "run"), weights=str(encoder), **QUICK)
    run_report_training(config, progress=False)
    return root


def generate(root: Path, out: Path, model=None, **options):
    studies = read_studies(root / "studies.csv").split("test")
    words = WritingOptions(num_beams=1, max_length=6)
    given = {"options": words, "pictures": 3, "batch_size": 2, **options}
    return write_reports(studies, model or load_report_model(root / "run"), out=out, **given)


def files_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def kill_after(patch, batches: int) -> list[int]:
    """Sizes of the batches that are written; the one after so many is where the run is killed."""
    write, sizes = writing._write_chunk, []

    def written(model, chunk, *given):
        if len(sizes) == batches:
            raise Killed
        sizes.append(len(chunk))
        return write(model, chunk, *given)

    patch.setattr(writing, "_write_chunk", written)
    return sizes


def killed(monkeypatch, root: Path, out: Path, batches: int) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, batches)
        with pytest.raises(Killed):
            generate(root, out)


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory) -> tuple[dict[str, bytes], list[str]]:
    out = tmp_path_factory.mktemp("whole") / "out"
    done = generate(root, out)
    assert (len(done.rows), len(done.quarantined)) == (STUDIES - 1, 1)
    made = files_in(out)
    assert JOURNAL not in made
    assert sum(name.endswith(".png") for name in made) == 3
    return made, done.notes


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_after_a_kill_the_rest_is_written(root, whole, tmp_path, monkeypatch, batches):
    out = tmp_path / "out"
    killed(monkeypatch, root, out, batches)
    assert "predictions.csv" not in files_in(out)
    sizes = kill_after(monkeypatch, 99)
    done = generate(root, out)
    assert sum(sizes) == STUDIES - 1 - 2 * batches
    assert files_in(out) == whole[0]
    told = [f"{2 * batches} reports were there already, of a run that had not come to its end"] if batches else []
    assert done.notes == told + whole[1]
    assert [row.picture is not None for row in done.rows] == [True] * 3 + [False] * 5
    assert [one.path for one in done.quarantined] == [str(root / "s14.png")]


DAMAGES = {  # and how many reports are kept
    "cut": (lambda text: text[:-40], 2),
    "more": (lambda text: text + '{"studies": 3}\n[1]\n', 4),
    "head": (lambda text: "x" + text, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_line_that_was_cut_or_damaged_is_written_again(root, whole, tmp_path, monkeypatch, damage):
    out, (change, left) = tmp_path / "out", DAMAGES[damage]
    killed(monkeypatch, root, out, 2)
    (out / JOURNAL).write_text(change((out / JOURNAL).read_text()))
    sizes = kill_after(monkeypatch, 99)
    generate(root, out)
    assert sum(sizes) == STUDIES - 1 - left
    assert files_in(out) == whole[0]


@pytest.mark.parametrize("change", ["options", "batch_size", "file", "weights"])
def test_what_was_made_otherwise_is_not_taken(root, tmp_path, monkeypatch, change):
    out, model = tmp_path / "out", load_report_model(root / "run")
    killed(monkeypatch, root, out, 3)
    changed = {"options": {"options": WritingOptions(num_beams=1, max_length=5)}, "batch_size": {"batch_size": 3}}
    if change == "file":
        (root / "s12.png").touch()
    if change == "weights":
        next(model.decoder.parameters()).data.add_(0.1)
    sizes = kill_after(monkeypatch, 99)
    done = generate(root, out, model, **changed.get(change, {}))
    assert sum(sizes) == len(done.rows) == STUDIES - 1
    assert not any("were there already" in note for note in done.notes)


def test_a_journal_of_somebody_else_is_left_alone(root, tmp_path):
    (tmp_path / JOURNAL).write_text(json.dumps({"mine": 1}))
    with pytest.raises(ConfigError, match=JOURNAL):
        generate(root, tmp_path)
    assert (tmp_path / JOURNAL).read_text() == json.dumps({"mine": 1})
