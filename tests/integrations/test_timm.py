"""timm: the model in its optimizers, averages, extractors and checkpoints, step by step as timm's ViT."""

from __future__ import annotations

import copy

import pytest
import torch
from integrations_helpers import same

import hdxray_fast  # noqa: F401  (timm's registry)

SMALL = {"img_size": 64, "in_chans": 1, "depth": 2, "embed_dim": 32, "num_heads": 2}


@pytest.fixture
def models(timm, folder):
    """Ours and timm's with the same weights and a new head of three classes, the same in both."""
    plain = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=0, global_pool="avg")
    timm.models.load_checkpoint(plain, str(folder / "model.safetensors"))
    ours = timm.create_model("hdxray_vit_tiny_patch16_1280", weights=folder, **SMALL, num_classes=0, global_pool="avg")
    for model in (ours, plain):
        model.reset_classifier(3)
    plain.head.load_state_dict(ours.head.state_dict())
    return ours, plain


def test_layer_decay_and_averages(timm, models, images):
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV3

    logits = []
    for model in models:
        optimizer = create_optimizer_v2(model.train(), "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
        schedule, average = CosineLRScheduler(optimizer, t_initial=4, warmup_t=1), ModelEmaV3(model, decay=0.5)
        for step in range(3):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
            schedule.step(step)
            average.update(model)
        with torch.no_grad():
            logits.append(average.module.eval()(images))
    same(*logits, tolerance=0.01)  # AdamW makes steps of rounding where gradients are nearly 0


def test_feature_pyramids(timm, folder, models, images):
    ours = timm.create_model(
        "hdxray_vit_tiny_patch16_1280", weights=folder, **SMALL, features_only=True, out_indices=(0, 1)
    )
    plain = timm.create_model("vit_tiny_patch16_224", **SMALL, features_only=True, out_indices=(0, 1))
    plain.model.load_state_dict(models[1].state_dict(), strict=False)
    assert ours.feature_info.channels() == plain.feature_info.channels()
    assert ours.feature_info.reduction() == plain.feature_info.reduction()
    for a, b in zip(ours.eval()(images), plain.eval()(images), strict=True):
        same(a.detach(), b.detach())


def test_checkpoints(timm, models, images, tmp_path):
    from timm.utils import CheckpointSaver

    for index, model in enumerate(models):
        place = tmp_path / str(index)
        place.mkdir()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        CheckpointSaver(model, optimizer, checkpoint_dir=str(place)).save_checkpoint(0, metric=1.0)
        again = copy.deepcopy(model)
        torch.nn.init.zeros_(again.head.weight)
        timm.models.load_checkpoint(again, str(place / "last.pth.tar"), weights_only=False)
        same(again.eval()(images).detach(), model.eval()(images).detach(), tolerance=0)
