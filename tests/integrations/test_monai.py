"""MONAI: its transforms, engines, inferers and class activation maps, with the encoder where its own ViT would be."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch
from integrations_helpers import same
from torch import nn
from toy_radiographs import draw_radiograph

import hdxray_fast as hx


@pytest.fixture
def monai(timm):
    return pytest.importorskip("monai", reason="MONAI is not installed: make integrations")


def test_metatensors_give_the_features_of_embed(monai, tmp_path):
    """`LoadImage` swaps rows and columns of PNG files; `Transpose` swaps them back."""
    from monai import transforms

    cv2.imwrite(str(tmp_path / "image.png"), draw_radiograph(0))
    load = transforms.Compose(
        [
            transforms.LoadImage(image_only=True, dtype=np.uint8),
            transforms.EnsureChannelFirst(),
            transforms.Transpose([0, 2, 1]),
        ]
    )
    image = load(str(tmp_path / "image.png"))
    assert isinstance(image, monai.data.MetaTensor)
    torch.manual_seed(0)
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=256, depth=2, embed_dim=32, num_heads=2, pool="mean")
    same(encoder.eval()(encoder.transform()(image)[None]), encoder(encoder.transform()(tmp_path / "image.png")[None]))
    for keep in ("all", "valid", "contour"):
        expected, table = (hx.embed([x], encoder, keep=keep) for x in (tmp_path / "image.png", image))
        same(torch.from_numpy(table.features), torch.from_numpy(expected.features))


def test_batches_of_metatensors_with_chests(monai):
    """What MONAI's loaders hand over, 8 bits, the contour looked for in it."""
    torch.manual_seed(0)
    encoder = hx.create_encoder(
        "vit_tiny_patch16", img_size=256, depth=2, embed_dim=32, num_heads=2, pool="mean", keep="contour"
    ).eval()
    drawn = torch.from_numpy(np.stack([cv2.resize(draw_radiograph(seed), (256, 256)) for seed in range(2)]))[:, None]
    data = monai.data.Dataset([monai.data.MetaTensor(x) for x in drawn])
    batch = next(iter(monai.data.DataLoader(data, batch_size=2)))
    assert isinstance(batch, monai.data.MetaTensor)
    same(torch.as_tensor(encoder(batch)), encoder(drawn))


def test_an_auto_encoder_takes_metatensors(monai):
    model = hx.create_mae(
        "vit_tiny_patch16", img_size=64, embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=32, decoder_depth=1
    )
    images = monai.data.MetaTensor(torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8))
    inside = torch.ones(2, 4, 4, dtype=torch.bool)
    plan = hx.plan_masks(inside, inside, 0.5, 0.3, seed=0)
    loss = model(images, plan, 1 / 64, -2.0).loss
    assert torch.equal(torch.as_tensor(loss), model(images.as_tensor(), plan, 1 / 64, -2.0).loss)


def test_class_activation_maps(monai, pair, classifiers, images):
    from monai.visualize import GradCAM, OcclusionSensitivity

    models = (classifiers.ours, classifiers.plain)
    maps = [GradCAM(model, "0.patch_embed.proj")(images[:1], class_idx=1) for model in models]
    assert maps[0].shape == (1, 1, 64, 64)
    same(*maps, tolerance=1e-3)
    maps = []
    for model in models:
        occlude = OcclusionSensitivity(model, mask_size=16, n_batch=8, overlap=0, verbose=False)
        maps.append(torch.as_tensor(occlude(images[:1])[0]))
    same(*maps)


def test_windows_slide_over_a_larger_image(monai, pair):
    """A dense head over the patches' map, 16 x 16 pixels a patch, as segmentation networks answer."""
    from monai.inferers import sliding_window_inference

    torch.manual_seed(1)
    head = nn.ConvTranspose2d(32, 2, 16, stride=16)
    images = torch.rand(1, 1, 112, 96) * 2 - 1
    maps = []
    for backbone in (pair.ours, pair.plain):

        def segment(windows, backbone=backbone):
            return head(backbone.forward_intermediates(windows, indices=1, intermediates_only=True)[0])

        with torch.no_grad():
            maps.append(sliding_window_inference(images, (64, 64), 2, segment, overlap=0.25, mode="gaussian"))
    assert maps[0].shape == (1, 2, 112, 96)
    same(*maps)


def test_its_trainer_and_evaluator(monai, classifiers):
    from monai.data import DataLoader, Dataset
    from monai.engines import SupervisedEvaluator, SupervisedTrainer

    pytest.importorskip("ignite", reason="MONAI's engines need pytorch-ignite: make integrations")
    torch.manual_seed(2)
    data = [{"image": torch.rand(1, 64, 64) * 2 - 1, "label": index % 3} for index in range(6)]
    logits = []
    for model in (classifiers.ours, classifiers.plain):
        model = copy.deepcopy(model)
        loader = DataLoader(Dataset(data), batch_size=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        SupervisedTrainer(
            torch.device("cpu"), 2, loader, model, optimizer, nn.functional.cross_entropy, amp=False
        ).run()
        evaluator = SupervisedEvaluator(torch.device("cpu"), loader, model)
        evaluator.run()
        logits.append(torch.stack([row["pred"] for row in evaluator.state.output]))
    same(*logits, tolerance=1e-3)
