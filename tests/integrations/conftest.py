"""One pair of models for every tool: our encoder and timm's ViT, with the same weights and the same features."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hdxray_fast as hx

SIZE = 64
DIM = 32


@pytest.fixture(autouse=True)
def _with_timm(timm):
    """Most of these tools need timm, and a torchvision that imports."""


@pytest.fixture(scope="session")
def folder(timm, tmp_path_factory):
    """A plain ViT (2 blocks, 16-px patches, one channel, mean of the patches) as timm writes it."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **VIT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    place = tmp_path_factory.mktemp("plain") / "vit"
    timm.models.save_for_hf(model, place, safe_serialization=True)
    return place


VIT = {
    "img_size": SIZE,
    "in_chans": 1,
    "depth": 2,
    "embed_dim": DIM,
    "num_heads": 2,
    "num_classes": 0,
    "global_pool": "avg",
}


@pytest.fixture
def pair(timm, folder):
    """``pair.ours``, ``pair.plain``: [B, 1, 64, 64] float32 -> [B, 32], equal; in evaluation mode."""
    plain = timm.create_model("vit_tiny_patch16_224", **VIT)
    timm.models.load_checkpoint(plain, str(folder / "model.safetensors"))
    ours = hx.create_encoder(weights=folder, img_size=SIZE, in_chans=1, pool="mean")
    images = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), plain.eval()(images), rtol=1e-4, atol=1e-5)
    return SimpleNamespace(ours=ours, plain=plain)


@pytest.fixture
def classifiers(pair):
    """The same two with one linear head of three classes: ``classifiers.ours``, ``classifiers.plain``."""
    head = nn.Linear(DIM, 3)
    models = [nn.Sequential(backbone, head).eval() for backbone in (pair.ours, pair.plain)]
    return SimpleNamespace(ours=models[0], plain=models[1])


@pytest.fixture
def images():
    """Two images as this ViT was trained on, from -1 to 1: float32 [2, 1, 64, 64]."""
    return torch.rand(2, 1, SIZE, SIZE) * 2 - 1
