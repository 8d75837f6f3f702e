"""What was written before the modules were sorted into rooms is read: models, checkpoints, prepared sets, reports.

The folders were made by ``make.py``, run at the last commit of the flat layout.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hdxray_fast as hx

for package in ("accelerate", "safetensors", "pyarrow", "pebble"):
    pytest.importorskip(package)

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected.json").read_text())

sys.path.insert(0, str(HERE))
import make  # noqa: E402

# Other processors and versions of PyTorch add up in another order; another formula is off by far more.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of everything, as the working folder, in which its relative paths hold."""
    copy = shutil.copytree(HERE, tmp_path / "formats", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.chdir(copy)
    monkeypatch.setitem(sys.modules[hx.EncoderConfig.__module__].ENCODERS, "vit_toy_patch16", make.TOY)
    return copy


def test_encoder(folder):
    encoder = hx.create_encoder(weights="encoder").eval()
    with torch.no_grad():
        values = encoder(make.pixels(), hx.plan_all(torch.ones(1, 4, 4, dtype=torch.bool))).values
    np.testing.assert_allclose(values.numpy(), EXPECTED["encoder"], **CLOSE)


def test_auto_encoder(folder):
    model = hx.load_model("mae").eval()
    plan = hx.plan_masks(np.ones((4, 4), bool), np.ones((4, 4), bool), predict=1.0, seed=3)
    with torch.no_grad():
        loss = model(make.pixels(), plan, scale=1 / 64, shift=-2.0).loss
    np.testing.assert_allclose(float(loss), EXPECTED["mae"], **CLOSE)


@pytest.mark.parametrize(
    ("name", "run", "config"),
    [
        ("pretrain", "run_pretraining", make.pretrain_config),
        ("finetune", "run_finetuning", make.finetune_config),
        ("report", "run_report_training", make.report_config),
    ],
)
def test_checkpoint_is_gone_on_from(folder, name, run, config):
    """The run was cut after step 3 of 4, its last checkpoint is of step 2: the log ends as the whole run's did."""
    if name != "pretrain":
        pytest.importorskip("sklearn" if name == "finetune" else "transformers")
    assert make.losses(name) == EXPECTED[name][:3]
    # pre-training sees its radiographs through views since, and standardises all of each: of 64 pixels, that is felt
    close = {"rtol": 5e-3} if name == "pretrain" else CLOSE
    seen = []
    getattr(hx, run)(config(name, resume="auto"), progress=False, on_step=lambda line: seen.append(line["step"]))
    assert seen == [3, 4]
    np.testing.assert_allclose(make.losses(name), EXPECTED[name], **close)
    again = config(f"again_{name}")  # and what this version makes of the whole run is the same
    getattr(hx, run)(again, progress=False)
    np.testing.assert_allclose(make.losses(f"again_{name}"), EXPECTED[name], **close)


def test_classifier(folder):
    pytest.importorskip("sklearn")
    expected = list(csv.DictReader(EXPECTED["probabilities"]))
    found = hx.predict("images", "classifier")
    assert [Path(path).name for path in found.images] == [Path(row["image"]).name for row in expected]
    np.testing.assert_allclose(found.probabilities[:, 0], [float(row["high"]) for row in expected], **CLOSE)


def test_report_model(folder):
    pytest.importorskip("transformers")
    written = hx.write_reports("images", "report_model")
    assert [row.text for row in written.rows] == EXPECTED["texts"]


@pytest.mark.parametrize("form", ["raw", "png"])
def test_prepared_set(folder, form):
    import cv2

    images = hx.PreparedSet(form)
    assert len(images) == 9
    for row in range(9):
        pixels = cv2.imread(images.source(row), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(images[row].pixels, pixels)
        assert images[row].valid_box == (0, 0, make.SIZE, make.SIZE)
        assert images[row].inside.shape == (4, 4)


@pytest.mark.parametrize("form", ["raw", "png"])
def test_prepared_set_without_thumbnails(folder, form):
    """They are made of its pixels where they are asked for; its parts merge as before, without a look for copies."""
    pytest.importorskip("matplotlib")
    from hdxray_fast.data.prepared.duplicates import thumbnails_of
    from hdxray_fast.data.prepared.index import merge

    images = hx.PreparedSet(form)
    before = thumbnails_of(images)
    assert before.shape == (9, 48, 48) and before.std() > 20
    assert merge(form)["near_duplicates"] == 0
    np.testing.assert_array_equal(thumbnails_of(hx.PreparedSet(form)), before)
