"""Experiments share one split: no encoder is pre-trained on an image that chooses or tests what is made of it."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

from hdxray_fast.classify.labels import labels_of
from hdxray_fast.classify.probe_config import ProbeConfig

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


def test_nothing_that_validates_or_tests_pretrains_whatever_the_seed(runs, labels, tmp_path):
    """Before, 2 seeds in 3 of the probes validated on images of the pre-training."""
    listed, count = runs.training_images(labels, None, tmp_path / "out")
    with listed.open() as stream:
        pretrained = {row["image"] for row in csv.DictReader(stream)}
    assert len(pretrained) == count == 36
    for seed in range(3):
        table = labels_of(ProbeConfig(labels, "out", "weights", seed=seed, **runs.SPLIT))
        held = {path for path, split in zip(table.paths, table.splits, strict=True) if split != "train"}
        assert len(held) == 24 and not held & pretrained


def test_other_data_to_pretrain_on_hold_no_image_that_tests(runs, labels, tmp_path):
    listed, _ = runs.training_images(labels, None, tmp_path / "out")
    runs.refuse_held_out(str(listed), labels, None)
    with pytest.raises(SystemExit, match=r"12 images of .* are in the split 'val'"):
        runs.refuse_held_out(str(tmp_path), labels, None)
