"""The page of a probe, a fine-tuning or an evaluation stands alone, escapes, and says what the metrics say."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from hdxray_fast import __version__
from hdxray_fast.classify.curves import BAND_STEPS, calibration_points, class_curves
from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.classify.metrics import evaluate_predictions, format_metrics
from hdxray_fast.classify.predictions import PAGE_FILE, RESULT_FILES, describe_unreadable, report_predictions
from hdxray_fast.classify.result_page import result_page
from hdxray_fast.data.bootstrap import PatientDraws

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

HOSTILE = "<script src=http://x.example>\x1b"
VOID = {"meta", "br", "img"}


class Checked(HTMLParser):
    """Tags that are opened and closed in their order; their names, and the text between them."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open, self.tags, self.words, self.fetched = [], set(), [], []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def sample(classes: int, count: int = 60) -> tuple[LabelTable, np.ndarray]:
    """Labels of two images a patient, and scores that say something of them."""
    random = np.random.default_rng(0)
    labels = (random.random((count, classes)) < 0.4).astype(np.float32)
    scores = np.clip(0.3 + 0.3 * labels + random.normal(0, 0.2, labels.shape), 0, 1)
    names = [HOSTILE, "mass", "edema"][:classes]
    paths = [f"{i}.png" for i in range(count)]
    return LabelTable(paths, labels, names, [f"p{i // 2}" for i in range(count)], ["test"] * count), scores


def test_it_stands_alone_beside_the_results(tmp_path):
    table, scores = sample(2)
    table.labels[:, 1] = np.nan  # nothing is known of it
    (tmp_path / "errors.png").write_bytes(b"")  # of an earlier run
    extra = {"config": {"data": HOSTILE, "img_size": 64}}
    notes = [f"no column of {HOSTILE}", describe_unreadable(3, tmp_path / "lost.csv"), f"no column of {HOSTILE}"]
    options = {"bootstraps": 50, "extra": extra, "title": "Linear probe", "notes": notes}
    report = report_predictions(tmp_path, table, scores, [0.5, 0.5], **options)
    content = (tmp_path / PAGE_FILE).read_text(encoding="utf-8")
    assert PAGE_FILE in RESULT_FILES and len(content) < 100_000
    found = Checked(content)
    words = " ".join(found.words)
    assert not found.tags & {"script", "link", "iframe", "object", "form", "a", "img"} and not found.fetched
    assert "default-src 'none'" in content and "width=device-width" in content and "\x1b" not in content
    assert words.count("<script src=http://x.example>") >= 3  # a name, where it is one
    auroc = report["classes"][HOSTILE]["auroc"]
    assert f"{auroc['value']:.3f}" in words and f"{auroc['low']:.3f} to {auroc['high']:.3f}" in words
    assert f"3 images are left out, which could not be read: {tmp_path}" in words and words.count("No column of") == 1
    assert content.index("3 images are left out") < content.index("No column of &lt;script") < content.index("<h2>")
    assert "--img-size" in words and "img_size" not in words and "Linear probe" in words
    assert content.count("<svg") == 3 and content.count('class="band"') == 1 and content.count('class="reach"') == 2
    hits = int(((scores[:, 0] >= 0.5) & (table.labels[:, 0] == 1)).sum())
    assert f"<td>has it</td><td>{hits}</td>" in content
    assert "No curves: one kind is missing." in words
    assert f"UTC by hdxray_fast {__version__}. Not a medical device: figures for research." in words
    there = timezone(timedelta(hours=-5))
    again = result_page(
        "Linear probe", table, scores, [0.5, 0.5], report, extra, made=datetime(2026, 1, 31, 20, 5, tzinfo=there)
    )
    assert "Made on 2026-02-01 at 01:05 UTC by" in again
    folded = content[content.index("<details>") : content.index("</details>")]
    assert "<summary><h2>Data and settings</h2></summary>" in folded and "--img-size" in folded


def test_patients_that_are_not_known_are_not_counted(tmp_path):
    table, scores = sample(2)
    table = replace(table, patients=list(table.paths), patients_known=False)
    report = report_predictions(tmp_path, table, scores, [0.5, 0.5], bootstraps=20)
    page = (tmp_path / PAGE_FILE).read_text(encoding="utf-8")
    assert "60 images, patients not known, 2 classes." in page and "60 patients" not in page
    assert not re.search(r"\d patients", page.replace("fewer than 10 patients", ""))
    assert report["patients"] is None and report["classes"]["mass"]["positive_patients"] is None
    assert "95 % over patients, who are not known: every image counts as one" in format_metrics(report)
    header, first, *_ = (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert "patient" not in header and first.count("0.png") == 1
    assert "LabelTable(60 images, patients not known, 60 test" in repr(table)
    known = evaluate_predictions(table.labels, scores, table.classes, table.patients, [0.5, 0.5], bootstraps=20)
    assert known["classes"]["mass"]["auroc"] == report["classes"]["mass"]["auroc"]  # each image a patient, as it was


def test_a_threshold_that_tells_nothing_apart_is_named(tmp_path):
    """Before, it stood in the table as any other."""
    table, scores = sample(3)
    scores, thresholds = np.clip(scores, 0.1, 0.9), [0.05, 0.95, 0.5]
    table.labels[:2, 0] = np.nan  # not known, and not counted
    report = evaluate_predictions(table.labels, scores, table.classes, table.patients, thresholds, bootstraps=0)
    assert [row["called"] for row in report["classes"].values()] == [58, 0, int((scores[:, 2] >= 0.5).sum())]
    whole = report_predictions(tmp_path, table, scores, thresholds, bootstraps=0)
    words = " ".join(Checked(result_page("Probe", table, scores, thresholds, whole, {})).words)
    for told in (
        "every image, so that the threshold tells nothing apart: <script src=",
        "no image, so that the thresh",
    ):
        assert f"called present in {told}" in format_metrics(report) and f"Called present in {told}" in words
    assert "apart: mass (from 0.95)." in words and "edema (from" not in words
    del report["classes"]["mass"]["called"]  # of an earlier release
    assert "mass (from" not in format_metrics(report)


def test_of_classes_that_exclude_each_other(tmp_path):
    table, scores = sample(3)
    table.labels[:] = np.eye(3)[np.arange(60) % 3]
    table = replace(table, multiclass=True)
    sheet = tmp_path / "errors.png"
    cv2.imwrite(str(sheet), np.full((40, 90, 3), 90, np.uint8))
    scores = scores / scores.sum(1, keepdims=True)
    report = report_predictions(tmp_path, table, scores, [0.5] * 3, bootstraps=0)
    found = Checked(result_page("Fine-tuning", table, scores, [0.5] * 3, report, {"precision": "fp32"}, sheet))
    assert len(found.fetched) == 1 and found.fetched[0].startswith("data:image/jpeg;base64,")
    cells = [f"{count:g}" for count in report["decisions"]["confusion"][0]]
    assert re.search(r"\b" + r"\s+".join(cells), " ".join(found.words))
    assert "threshold" not in " ".join(found.words)


def test_a_class_of_few_patients_has_no_band():
    table, scores = sample(1, 6)
    table.labels[:, 0] = [1, 1, 0, 0, 0, 0]
    truth, score, rows = table.labels[:, 0].astype(int), scores[:, 0], np.arange(6)
    assert class_curves(truth, score, rows, PatientDraws(table.patients, 0, 0)).band is None
    band = class_curves(truth, score, rows, PatientDraws(table.patients, 50, 0)).band
    assert band.shape == (3, BAND_STEPS) and (band[1] <= band[2]).all()
    assert class_curves(truth, score, rows, PatientDraws(table.patients, 50, 0), band=False).band is None


@pytest.mark.parametrize("count", [1, 9, 60, 5000])
def test_a_calibration_has_few_bins_of_equally_many_images(count):
    random = np.random.default_rng(count)
    score = random.random(count) ** 3  # most are low, as of rare findings
    truth = (random.random(count) < score).astype(int)
    predicted, observed, counts = calibration_points(truth, score)
    assert 1 <= len(counts) <= 10 and counts.sum() == count and counts.max() <= 2 * max(counts.min(), 1)
    assert np.average(predicted, weights=counts) == pytest.approx(score.mean())
    assert np.average(observed, weights=counts) == pytest.approx(truth.mean())
    same, _, alone = calibration_points(truth, np.full(count, 0.25))
    assert same.tolist() == [0.25] and alone.tolist() == [count]


def test_a_page_that_cannot_be_made_is_left_out_with_a_warning(tmp_path, monkeypatch):
    from hdxray_fast.classify import predictions

    table, scores = sample(1)
    monkeypatch.setattr(predictions, "result_page", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match=r"report\.html: left out, it cannot be made \(ZeroDivisionError"):
        report = report_predictions(tmp_path, table, scores, [0.5], bootstraps=0)
    assert report["classes"] and not (tmp_path / PAGE_FILE).exists() and (tmp_path / "metrics.json").exists()
