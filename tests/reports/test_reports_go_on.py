"""Reports that a killed run had written are not written again, and shares of them are joined: the end is that of a run
left alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from film_makers import draw_film
from prepared_helpers import prepare
from report_makers import write_csv
from report_model_makers import ENGLISH, QUICK, save_small_encoder

pytest.importorskip("transformers")

from hdxray_fast.errors import ArgumentTypeError, CheckpointError, ConfigError
from hdxray_fast.reports import writing
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.reports.run import run_report_training
from hdxray_fast.reports.saving import load_report_model, save_report_model
from hdxray_fast.reports.studies import StudyTable
from hdxray_fast.reports.writing import write_reports
from hdxray_fast.reports.writing_options import WritingOptions

STUDIES = 9  # of the test, the third of which cannot be read
BATCHES = (2, 1, 2, 2, 1)  # reports on two studies at a time
JOURNAL = Path("predictions.csv.parts", "1-of-1.00000000.jsonl")


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
    table = StudyTable(read_studies(root / "studies.csv").split("test"))
    words = WritingOptions(num_beams=1, max_length=6)
    given = {"options": words, "pictures": 3, "batch_size": 2, **options}
    return write_reports(table, model or load_report_model(root / "run"), out=out, **given)


def files_in(out: Path) -> dict[str, bytes]:
    """Contents by name; the page tells when it was made and what was there already."""
    told = lambda path: path.is_file() and path.name != "reports.html"  # noqa: E731
    return {path.name: path.read_bytes() if told(path) else b"" for path in sorted(out.iterdir())}


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
    assert JOURNAL.parts[0] not in made
    assert sum(name.endswith(".png") for name in made) == 2  # of the first three studies
    return made, done.notes


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_after_a_kill_the_rest_is_written(root, whole, tmp_path, monkeypatch, batches):
    out = tmp_path / "out"
    killed(monkeypatch, root, out, batches)
    assert "predictions.csv" not in files_in(out)
    sizes = kill_after(monkeypatch, 99)
    done = generate(root, out)
    assert sizes == list(BATCHES[batches:])
    assert files_in(out) == whole[0]
    there = sum(BATCHES[:batches])
    told = [f"{there} reports written already, by a run that had not come to its end"] if batches else []
    assert done.notes == told + whole[1]
    assert [row.picture is not None for row in done.rows] == [True] * 2 + [False] * 6
    assert [one.path for one in done.quarantined] == [str(root / "s14.png")]


DAMAGES = {  # and how many reports are kept
    "cut": (lambda text: text[:-40], 2),
    "more": (lambda text: text + '{"batch": 2}\n[1]\n', 3),
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
    (tmp_path / JOURNAL).parent.mkdir()
    (tmp_path / JOURNAL).write_text(json.dumps({"mine": 1}))
    with pytest.raises(ConfigError, match=JOURNAL.parts[0]):
        generate(root, tmp_path)
    assert (tmp_path / JOURNAL).read_text() == json.dumps({"mine": 1})


def test_parts_are_joined_by_the_last_of_them(root, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    sizes = kill_after(monkeypatch, 99)
    first = generate(root, out, part="1/3")
    assert (first.joined, first.waiting, first.rows) == (False, [2, 3], [])
    assert generate(root, out, part="3/3").waiting == [2]
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            generate(root, out, part="2/3")
    assert "predictions.csv" not in files_in(out)
    done = generate(root, out, part="2/3")
    assert done.joined and [row.study.id for row in done.rows] == [f"s{n}" for n in (12, 13, *range(15, 21))]
    assert sizes == [BATCHES[batch] for batch in (0, 3, 2, 1, 4)]
    assert files_in(out) == whole[0]
    assert done.notes == ["1 report written already, by a run that had not come to its end", *whole[1]]


def test_lines_that_a_share_has_lost_are_told_of(root, tmp_path):
    out = tmp_path / "out"
    generate(root, out, part="1/2")
    lines = out / JOURNAL.parts[0] / "1-of-2.00000000.jsonl"
    lines.write_text("\n".join(lines.read_text().split("\n")[:-2]) + "\n")
    with pytest.raises(ConfigError, match=r"^out: 1 of 5 batches are lost: "):
        generate(root, out, part="2/2")
    assert generate(root, out, part="1/2").joined


def test_parts_need_a_place_to_be_joined_in(root):
    with pytest.raises(ConfigError, match=r"^part: shares are joined in the folder out"):
        generate(root, None, part="1/2")


def losses_of(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("changes", [{}, {"encoder_lr": 1e-4, "augment": True}])
def test_a_training_on_a_prepared_set_is_that_on_its_files(root, tmp_path, changes):
    config = {**QUICK, **changes, "data": str(root / "studies.csv"), "weights": str(root / "encoder")}
    size = load_report_model(root / "run").encoder.img_size[0]
    prepare(root.glob("s*.png"), tmp_path / "set", img_size=size, view="any", body_part="any")
    if changes:
        run_report_training(ReportConfig(out=str(tmp_path / "files"), **config), progress=False)
    stored = ReportConfig(out=str(tmp_path / "run"), prepared=str(tmp_path / "set"), **config)
    done = run_report_training(stored, progress=False)
    assert done.losses == losses_of(tmp_path / "files" if changes else root / "run")
    assert not (tmp_path / "run" / "unreadable.csv").exists()
    with pytest.raises(ConfigError, match=r"^contour: .* was prepared with rectangle, and not with prior; "):
        run_report_training(replace(stored, out=str(tmp_path / "other"), contour="prior"), progress=False)


def test_reports_on_a_prepared_set_are_those_on_its_files(root, whole, tmp_path):
    """Of the studies of a table, whose files may be gone by then, or of each radiograph."""
    settings = {"img_size": load_report_model(root / "run").encoder.img_size[0], "view": "any", "body_part": "any"}
    films = shutil.copytree(root, tmp_path / "films", ignore=shutil.ignore_patterns("run", "encoder", "*.csv"))
    prepare([films], tmp_path / "set", **settings)
    words = WritingOptions(num_beams=1)
    files = write_reports(str(films), root / "run", options=words, pictures=0)
    some = write_reports([films / "s12.png", films / "s13.png"], root / "run", options=words, pictures=0)
    assert [row.text for row in some.rows] == [row.text for row in files.rows if row.study.id in ("s12", "s13")]
    shutil.rmtree(films)
    stored = write_reports([tmp_path / "set"], root / "run", options=words, pictures=0)
    assert [(row.study, row.text) for row in stored.rows] == [(row.study, row.text) for row in files.rows]

    studies = read_studies(root / "studies.csv", prepared=tmp_path / "set")
    assert len(studies.split("test")) == STUDIES - 1
    assert [note for note in studies.notes if "prepared" in note] == [
        f"1 image not in the prepared data set {tmp_path / 'set'} ({root / 's14.png'})"
    ]
    given = {"options": WritingOptions(num_beams=1, max_length=6), "batch_size": 2, "pictures": 0}
    done = write_reports(
        studies.split("test"), root / "run", prepared=[tmp_path / "set"], out=tmp_path / "out", **given
    )
    assert {row.study.id for row in done.rows} == {f"s{n}" for n in (12, 13, *range(15, 21))}
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == whole[0]["predictions.csv"]
    model = load_report_model(root / "run")
    model.encoder.contour = "prior"
    with pytest.raises(ConfigError, match=r"set: was prepared with contour="):
        write_reports(str(tmp_path / "set"), model)
    with pytest.raises(ArgumentTypeError, match=r"^studies: "):
        write_reports([films / "s12.png", studies.studies[0]], model)


def test_a_report_model_is_not_written_in_the_place_of_a_file(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file: cannot be written .*Not a directory"):
        save_report_model(load_report_model(root / "run"), tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
