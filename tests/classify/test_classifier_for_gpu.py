"""Classifiers compiled for a GPU that is not there, as tests/models/test_models_for_gpu.py does with encoders."""

from __future__ import annotations

import pytest
import torch
from fake_gpu import check, fake_gpu, needs_cuda_build, on_gpu, traced
from plan_helpers import ragged_plan

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig

pytestmark = needs_cuda_build
IMAGES, PLAN = torch.zeros(2, 1, 64, 64, dtype=torch.uint8), ragged_plan((4, 4), [5, 3], [0, 0])


@pytest.mark.parametrize("head", ["linear", pytest.param("attention", marks=pytest.mark.slow), "label-query"])
def test_classifier(monkeypatch, head):
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1, embed_dim=64, num_heads=1)
    model = Classifier(encoder, ClassifierConfig(["a", "b", "c"], head=head))
    with fake_gpu(monkeypatch) as mode:
        images, plan, model = (on_gpu(mode, value) for value in (IMAGES, PLAN, model))
        check(traced(model, images, plan), (2, 3), True)
        check(traced(model, images), (2, 3), True)
