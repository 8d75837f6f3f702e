"""A step of fine-tuning is the same however its images are split: drop-path, mixup and augmentation included."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.classify.config import FinetuneConfig
from hdxray_fast.classify.finetune import run_finetuning

for package in ("accelerate", "sklearn", "pandas", "matplotlib", "pyarrow"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Noise with a bright half and its side for a label; 18 images, so that steps of eight straddle epochs."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["image,patient,split,right"]
    for number in range(18):
        image = rng.integers(60, 100, (64, 64)).astype(np.uint8)
        image[:, 32 * (number % 2) :][:, :32] += 90
        assert cv2.imwrite(str(root / f"{number}.png"), image)
        split = "train" if number < 10 else "val" if number < 14 else "test"
        lines.append(f"{number}.png,p{number},{split},{number % 2}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(1)
    hx.save_model(hx.create_encoder("vit_tiny_patch16", img_size=64, depth=2, embed_dim=24, num_heads=3), root / "w")
    return root


def log_of(data: Path, out: Path, **changes) -> list[dict]:
    options = {
        "weights": str(data / "w"), "cache": str(data / "cache"), "contour": "rectangle", "steps": 4, "lr": 1e-3,
        "eval_every": 4, "drop_path": 0.5, "mixup": 0.4, "augment": "rand", "head": "attention", "text": "none",
        "bootstraps": 0, "workers": 0, "threads": 1, "tensorboard": False, **changes,
    }  # fmt: skip
    run_finetuning(FinetuneConfig(data=str(data / "labels.csv"), out=str(out), **options), progress=False)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("keep", ["all", "contour"])
def test_another_split_of_the_batch_has_the_same_losses(data, tmp_path, keep):
    whole = log_of(data, tmp_path / "whole", batch_size=8, keep=keep)
    parts = log_of(data, tmp_path / "parts", batch_size=2, grad_accum=4, keep=keep, checkpoint_activations=True)
    for ours, reference in zip(parts, whole, strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)


def test_what_is_drawn_does_something(data, tmp_path):
    """Otherwise the split would be no test of it."""
    losses = set()
    for name, changes in {"both": {}, "drop_path": {"mixup": 0.0}, "mixup": {"drop_path": 0.0}}.items():
        (line,) = log_of(data, tmp_path / name, batch_size=8, steps=1, eval_every=1, **changes)
        losses.add(round(line["loss"], 6))
    assert len(losses) == 3
