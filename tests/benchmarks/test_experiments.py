"""Experiments: no encoder is pre-trained on an image that chooses or tests, labels are few, slices make one table."""

from __future__ import annotations

import importlib
import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_radiographs import draw_radiograph

from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.classify.labels import labels_of
from hdxray_fast.classify.probe_config import ProbeConfig
from hdxray_fast.models.encoder import Encoder
from hdxray_fast.training.stop import StopNotice

pytest.importorskip("pandas")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "experiments"))
    return importlib.import_module("runs")


@pytest.fixture
def labels(tmp_path) -> str:
    rows = [f"{i}.png,p{i // 2},{i % 2}" for i in range(60)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,patient,high", *rows]) + "\n")
    for i in range(60):
        (tmp_path / f"{i}.png").write_bytes(b"")
    return str(tmp_path / "labels.csv")


def test_nothing_that_validates_or_tests_pretrains_whatever_the_seed(runs, labels):
    """Before, 2 seeds in 3 of the probes validated on images of the pre-training."""
    pretrained = runs.training_images(labels, None)
    assert len(pretrained) == 36
    for seed in range(3):
        table = labels_of(ProbeConfig(labels, "out", "weights", seed=seed, **runs.SPLIT))
        held = {path for path, split in zip(table.paths, table.splits, strict=True) if split != "train"}
        assert len(held) == 24 and not held & {*pretrained}


def test_other_data_to_pretrain_on_hold_no_image_that_tests(runs, labels, tmp_path):
    listed = runs.write_manifest(tmp_path / "out" / "pretrain.csv", list(runs.training_images(labels, None)))
    runs.refuse_held_out(listed, runs.images_of(listed), labels, None)
    with pytest.raises(SystemExit, match=r"12 images of .* are in the split 'val'"):
        runs.refuse_held_out(str(tmp_path), runs.images_of(str(tmp_path)), labels, None)


def test_shares_of_the_patients_are_parts_of_each_other(runs, labels):
    images = runs.images_of(labels)
    assert images[str(Path(labels).parent / "7.png")] == "p3"
    shares = [set(runs.share_of_patients(images, share, 0)) for share in (1 / 8, 1 / 4, 1 / 2, 1)]
    assert [len(share) for share in shares] == [8, 16, 30, 60]  # of 30 patients, two images each
    assert all(smaller < larger for smaller, larger in itertools.pairwise(shares))
    assert {images[path] for path in shares[0]}.isdisjoint(images[path] for path in shares[3] - shares[0])
    assert shares[0] != set(runs.share_of_patients(images, 1 / 8, 1))
    assert len(runs.share_of_patients(dict.fromkeys(images, ""), 1 / 4, 0)) == 15


@pytest.fixture
def readings(runs):
    return importlib.import_module("readings")


@pytest.fixture
def table() -> LabelTable:
    """Two images of each of 150 patients, the second class with the last tenth of them alone, some unknown."""
    rows = np.arange(300)
    labels = np.stack([rows // 2 % 3 == 0, rows >= 270], axis=1).astype(np.float32)
    labels[5:8, 1] = np.nan
    splits = ["test" if row % 20 < 4 else "val" if row % 20 < 8 else "train" for row in rows]
    return LabelTable([f"{row}.png" for row in rows], labels, ["a", "b"], [f"p{row // 2}" for row in rows], splits)


def test_few_labels_are_drawn_by_patient_with_the_classes_of_all(readings, table):
    draws = [readings.labelled_rows(table, (0.05, 0.5, 0.1), seed) for seed in range(2)]
    for draw in draws:
        assert {*draw[0.05]} < {*draw[0.1]} < {*draw[0.5]}
        assert [len(draw[share]) for share in (0.05, 0.1, 0.5)] == [10, 18, 90]  # 9, but patients have two each
        for share, rows in draw.items():
            assert {table.splits[row] for row in rows} == {"train"}
            patients = [table.patients[row] for row in rows]
            assert all(patients.count(patient) == 2 for patient in patients)
            positive = np.nansum(table.labels[rows], axis=0)
            assert abs(positive[0] - share * 60) <= 2 and positive[1] >= 2  # a class of 18 in 180 is in the smallest
    assert {*draws[0][0.1]} != {*draws[1][0.1]}
    with pytest.raises(SystemExit, match=r"0\.001 of the training images is none"):
        readings.labelled_rows(table, (0.001,), 0)


def test_few_labels_are_all_that_a_probe_of_them_sees(readings, table):
    features = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    rows = readings.labelled_rows(table, (0.1,), 0)[0.1]
    found = readings.few_labels(features, table, rows)
    hidden = replace(table, labels=np.where(np.isin(np.arange(300), rows)[:, None], table.labels, np.nan))
    assert found.shape == (60, 2) and np.array_equal(found, readings.few_labels(features, hidden, rows))


def test_nearest_neighbours_are_weighted_as_dino_does(readings, table):
    features = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)
    found = readings.nearest_neighbours(features, table)
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    test = [row for row, split in enumerate(table.splits) if split == "test"]
    for column in range(2):
        known = [r for r, s in enumerate(table.splits) if s == "train" and not np.isnan(table.labels[r, column])]
        cosine = unit[test] @ unit[known].T
        for place, row in enumerate(cosine):
            nearest = np.argsort(-row)[:20]
            weights = np.exp(row[nearest] / 0.07)
            expected = (weights * table.labels[known, column][nearest]).sum() / weights.sum()
            assert found[place, column] == pytest.approx(expected, abs=1e-5)
    few = table.rows([*range(12, 20), *test])  # eight training images, without one of the second class
    assert readings.nearest_neighbours(features[: len(few)], few)[:, 1].tolist() == [0] * 60


@pytest.fixture
def slices(runs):
    return importlib.import_module("slices")


def test_slices_of_no_time_at_all_come_to_an_end(slices):
    """Each does at least a part; who is done stays done."""
    done, calls, counts = [], [], {"a": 1, "b": 3, "c": 1}

    def unit(name: str):
        def work() -> None:
            calls.append(name)
            if calls.count(name) == counts[name]:
                done.append(name)

        return slices.Unit(name, lambda: name in done, work)

    ends = []
    for _ in range(5):
        try:
            slices.Slice(0).work([unit(name) for name in counts])
        except SystemExit as stopped:
            ends.append(stopped.code)
    assert (calls, ends) == (["a", "b", "b", "b", "c"], [slices.STOPPED] * 4)
    slices.Slice(0).work([unit(name) for name in counts])
    assert len(calls) == 5


def test_a_training_is_told_to_stop_when_the_time_is_over(slices):
    clock = itertools.count()
    piece, notice = slices.Slice(2.5, clock.__next__), StopNotice()
    with notice.awaited():
        told = [(piece.on_step({}), notice.requested)[1] for _ in range(4)]
    assert told == [False, False, True, True]


def test_runs_of_other_settings_are_not_shown_as_if_they_were_these(slices, tmp_path):
    slices.begin(tmp_path / "out", {"steps": 3, "shares": (1, 2)}, "probes/*")
    slices.begin(tmp_path / "out", {"steps": 3, "shares": (1, 2)}, "probes/*")
    with pytest.raises(SystemExit, match=r"begun with other settings \(more, steps; see experiment.json\)"):
        slices.begin(tmp_path / "out", {"steps": 4, "shares": (1, 2), "more": 1}, "probes/*")
    for text in ("{", "[]"):
        (tmp_path / "out" / slices.RECORD).write_text(text)
        with pytest.raises(SystemExit, match=r"experiment.json: .*; put it back, or choose another --out"):
            slices.begin(tmp_path / "out", {"steps": 3}, "probes/*")
    (tmp_path / "old" / "probes" / "contour_0").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"holds runs and no experiment\.json"):
        slices.begin(tmp_path / "old", {"steps": 3}, "probes/*")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shares", "--rows", "1/8", "3/2"], "'3/2' is not accepted for shares"),
        (["resolutions", "--rows", "none"], "'none' is not accepted for resolutions"),
        (["strategies", "--rows", "contours"], "accepted are contour, random, rectangle, block, none"),
        (["strategies", "--seeds", "1", "1"], "--seeds: give different ones"),
        (["strategies", "--label-shares", "0"], "--label-shares are above 0"),
    ],
)
def test_what_is_not_accepted_is_said_before_anything_is_read(arguments, words, runs, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("pretraining").parsed([*arguments, "--labels", "none.csv"])
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_of_five_slices_is_that_of_one_call(runs, tmp_path, monkeypatch):
    """Pre-training, probe, readings and fine-tuning, cut within trainings too: the same files, byte for byte."""
    for package in ("accelerate", "pyarrow", "sklearn", "scipy", "matplotlib"):
        pytest.importorskip(package)
    pretraining, finetuning = (importlib.import_module(name).main for name in ("pretraining", "finetuning"))

    def untrained(*told) -> Encoder:
        encoder = runs.untrained(*told)
        encoder.contour = "rectangle"
        return encoder

    # no network looks for a contour: it would be all that the time goes to
    monkeypatch.setattr(runs, "KEPT", {**runs.KEPT, "contour": "rectangle"})
    monkeypatch.setattr(importlib.import_module("pretraining"), "untrained", untrained)
    rows = []
    for i in range(40):
        film = draw_radiograph(i)
        film[60:90, 40:60] = 200 if i % 2 else film[60:90, 40:60]
        cv2.imwrite(str(tmp_path / f"{i}.png"), film)
        rows.append(f"{i}.png,p{i},{i % 2},{'test' if i < 12 else 'val' if i < 18 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(["image,patient,high,split", *rows]) + "\n")
    given = ["strategies", "--labels", str(tmp_path / "labels.csv"), "--rows", "contour", "none", "--seeds", "0"]
    given += ["--img-size", "64", "--steps", "4", "--batch-size", "4", "--workers", "0"]
    given += ["--label-shares", "0.2", "0.4", "--label-draws", "2"]

    def end_of(main: Callable, arguments: list[str]) -> int | None:
        try:
            main(arguments, itertools.count().__next__)
        except SystemExit as end:
            return end.code
        return None

    assert end_of(pretraining, [*given, "--out", str(tmp_path / "whole")]) is None
    ends, stopped_within = [], False
    while not ends or ends[-1] is not None:
        # a second passes each time that the clock is looked at: the first two calls end within the pre-training
        ends.append(
            end_of(pretraining, [*given, "--out", str(tmp_path / "cut"), "--seconds", "2" if len(ends) < 2 else "1"])
        )
        stopped_within |= (tmp_path / "cut" / "pretrain" / "contour_0" / "checkpoints").exists()
    assert len(ends) >= 5 and set(ends[:-1]) == {75} and stopped_within
    written = ["results.json", "table.md", "auroc.png", "pretrain/contour_0/model/model.safetensors"]
    for run in ("contour_0", "none_0"):
        written += [f"probes/{run}/predictions.csv"]
        for reading in ("neighbours", "share_0.2_0", "share_0.2_1", "share_0.4_0", "share_0.4_1"):
            written.append(f"readings/{run}/{reading}/predictions.csv")
    for name in written:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with pytest.raises(SystemExit, match=r"other settings \(steps;"):
        pretraining([*given, "--out", str(tmp_path / "cut"), "--steps", "5"])
    tuned = ["--labels", str(tmp_path / "labels.csv"), "--probe", str(tmp_path / "cut"), "--seeds", "0"]
    tuned += ["--rival", str(tmp_path / "rival"), "--epochs", "1", "--batch-size", "8", "--workers", "0"]
    shutil.copytree(tmp_path / "cut" / "probes" / "none_0", tmp_path / "rival" / "resnet18_0")
    assert end_of(finetuning, [*tuned, "--out", str(tmp_path / "tuned_whole")]) is None
    ends = []
    while not ends or ends[-1] is not None:
        ends.append(end_of(finetuning, [*tuned, "--out", str(tmp_path / "tuned_cut"), "--seconds", "1"]))
    assert len(ends) >= 4 and set(ends[:-1]) == {75}  # three steps each, and a slice for each step
    for name in ("results.json", "table.md", "tuned_0/predictions.csv", "scratch_0/predictions.csv"):
        assert (tmp_path / "tuned_cut" / name).read_bytes() == (tmp_path / "tuned_whole" / name).read_bytes(), name
