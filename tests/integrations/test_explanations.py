"""captum and pytorch-grad-cam: attributions of the encoder are those of a plain ViT with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from integrations_helpers import same


@pytest.fixture
def captum():
    return pytest.importorskip("captum.attr", reason="captum is not installed: make integrations")


@pytest.mark.parametrize("method", ["Saliency", "InputXGradient", "IntegratedGradients", "GradientShap", "Occlusion"])
def test_captum_attributes_pixels(captum, classifiers, images, method):
    options = {
        "IntegratedGradients": {"n_steps": 4},
        "GradientShap": {"baselines": torch.zeros_like(images), "n_samples": 2},
        "Occlusion": {"sliding_window_shapes": (1, 16, 16), "strides": (1, 16, 16)},
    }.get(method, {})
    found = []
    for model in (classifiers.ours, classifiers.plain):
        torch.manual_seed(1)
        np.random.seed(1)
        found.append(getattr(captum, method)(model).attribute(images, target=1, **options).detach())
    same(*found)


@pytest.mark.parametrize("layer", ["patch_embed.proj", "blocks.0", "blocks.1.norm1", "blocks.1.mlp.fc2"])
@pytest.mark.parametrize("method", ["LayerActivation", "LayerGradientXActivation"])
def test_captum_looks_into_layers(captum, pair, classifiers, images, layer, method):
    found = []
    for model, backbone in ((classifiers.ours, pair.ours), (classifiers.plain, pair.plain)):
        explain = getattr(captum, method)(model, backbone.get_submodule(layer))
        options = {} if method == "LayerActivation" else {"target": 1}
        found.append(explain.attribute(images, **options).detach())
    same(*found)


def test_captum_maps_of_the_patch_embedding(captum, pair, classifiers, images):
    found = []
    for model, backbone in ((classifiers.ours, pair.ours), (classifiers.plain, pair.plain)):
        explain = captum.LayerGradCam(model, backbone.patch_embed.proj)
        found.append(captum.LayerAttribution.interpolate(explain.attribute(images, target=1), (64, 64)).detach())
    assert found[0].shape == (2, 1, 64, 64)
    same(*found)


@pytest.mark.parametrize("method", ["GradCAM", "HiResCAM", "LayerCAM", "EigenCAM", "ScoreCAM"])
@pytest.mark.parametrize("layer", ["patch_embed.proj", "blocks.1.norm1"])
def test_grad_cam(classifiers, pair, images, method, layer):
    cam = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed: make integrations")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def as_map(tokens):  # as its documentation does for a ViT: the class token away, the rest a map
        if tokens.ndim == 4:
            return tokens
        return tokens[:, 1:].reshape(len(tokens), 4, 4, -1).permute(0, 3, 1, 2)

    found = []
    for model, backbone in ((classifiers.ours, pair.ours), (classifiers.plain, pair.plain)):
        with getattr(cam, method)(model, [backbone.get_submodule(layer)], reshape_transform=as_map) as explain:
            picture = explain(images.clone(), targets=[ClassifierOutputTarget(1)] * 2)
        assert picture.shape == (2, 64, 64)
        found.append(torch.from_numpy(np.asarray(picture)))
    same(*found, tolerance=1e-3)
