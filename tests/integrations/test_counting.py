"""torchinfo, Opacus, PyTorch's counter of FLOPs: what they count and gradients of samples are those of a plain ViT."""

from __future__ import annotations

import warnings

import pytest
from integrations_helpers import same


def test_torchinfo(pair, images):
    torchinfo = pytest.importorskip("torchinfo", reason="torchinfo is not installed: make integrations")
    ours, plain = (torchinfo.summary(model, input_data=images, verbose=0) for model in (pair.ours, pair.plain))
    assert ours.total_mult_adds == plain.total_mult_adds
    assert ours.trainable_params == plain.trainable_params


def test_opacus_gives_gradients_of_single_samples(classifiers, images):
    opacus = pytest.importorskip("opacus", reason="Opacus is not installed: make integrations")
    found = []
    for model in (classifiers.ours, classifiers.plain):
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("mlp" in name or "qkv" in name or "patch_embed" in name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = opacus.GradSampleModule(model.train())
            wrapped(images).square().sum().backward()
        found.append({name: p.grad_sample for name, p in wrapped.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 14
    for name, ours in found[0].items():
        assert ours.shape[0] == 2
        same(ours, found[1][name], tolerance=1e-3)


def test_flops_of_torch(pair, images):
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for model in (pair.ours, pair.plain):
        with FlopCounterMode(display=False) as counter:
            model(images).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
