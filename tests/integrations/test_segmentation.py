"""segmentation-models-pytorch: a dense prediction transformer over the encoder's blocks."""

from __future__ import annotations

import pytest
import torch

import hdxray_fast  # noqa: F401  (timm's registry)


def test_dpt(timm):
    smp = pytest.importorskip(
        "segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed: make integrations"
    )
    sizes = {"in_channels": 1, "classes": 2, "encoder_weights": None}
    torch.manual_seed(0)
    plain = smp.DPT("tu-vit_tiny_patch16_224", **sizes, dynamic_img_size=True).eval()
    ours = smp.DPT("tu-hdxray_vit_tiny_patch16_1280", **sizes, dynamic_img_size=True, img_size=224).eval()
    images = torch.rand(2, 1, 96, 64) * 2 - 1
    assert ours(images).shape == plain(images).shape == (2, 2, 96, 64)
    ours.train()(images).square().mean().backward()
    assert all(p.grad is not None for name, p in ours.encoder.named_parameters() if p.requires_grad and "qkv" in name)
