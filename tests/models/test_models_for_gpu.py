"""Models compiled for a GPU that is not there: every branch that only CUDA tensors take is traced, in one graph."""

from __future__ import annotations

import pytest
import torch
from fake_gpu import autocast_on_gpu, check, fake_gpu, needs_cuda_build, on_gpu, traced
from plan_helpers import ragged_plan

import hdxray_fast as hx
from hdxray_fast.features.embedding import PooledFeatures

pytestmark = needs_cuda_build
SIZES = {"img_size": 64, "depth": 1, "embed_dim": 64, "num_heads": 1}
NAME = "vit_tiny_patch16"
IMAGES, PLAN = torch.zeros(2, 1, 64, 64, dtype=torch.uint8), ragged_plan((4, 4), [5, 3], [8, 6])
NO_KERNELS = {"triton": "there are none", "core": "there is none"}


@pytest.mark.parametrize(("missing", "training"), [({}, True), (NO_KERNELS, False)], ids=["kernels", "no-kernels"])
def test_encoder(monkeypatch, missing, training):
    encoder = hx.create_encoder(NAME, pool="cls", **SIZES).train(training)
    with fake_gpu(monkeypatch, **missing) as mode, autocast_on_gpu(training), torch.set_grad_enabled(training):
        images, plan, encoder = (on_gpu(mode, value) for value in (IMAGES, PLAN, encoder))
        check(traced(encoder, images, plan), (2, 64), training)
        check(traced(encoder, images), (2, 64), training)  # dense: every patch


@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
def test_pooled_features(monkeypatch, pool):
    """What ``embed`` compiles."""
    model = PooledFeatures(hx.create_encoder(NAME, pool=pool, **SIZES).eval(), pool)
    with fake_gpu(monkeypatch) as mode, autocast_on_gpu(True), torch.no_grad():
        images, plan, model, scale = (on_gpu(mode, value) for value in (IMAGES, PLAN, model, torch.ones(2)))
        check(traced(model, images, plan, scale, scale), (2, 64), False)


@pytest.mark.parametrize(
    ("decoder", "missing", "dynamic"),
    [
        ("cross", {}, None),
        ("self", NO_KERNELS, True),
        pytest.param("cross", NO_KERNELS, None, marks=pytest.mark.slow),
        pytest.param("self", {}, True, marks=pytest.mark.slow),
    ],
)
def test_auto_encoder(monkeypatch, decoder, missing, dynamic):
    model = hx.create_mae(NAME, decoder=decoder, decoder_embed_dim=64, decoder_depth=1, **SIZES)
    with fake_gpu(monkeypatch, **missing) as mode:
        images, plan, model, scale = (on_gpu(mode, value) for value in (IMAGES, PLAN, model, torch.ones(2)))
        output = traced(model, images, plan, scale, scale, dynamic=dynamic)
        check(output.loss, (), True)
        check(output.pred, (14, 256), True)
