"""Heads on packed tokens, and classifiers on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier
from hdxray_fast.classify.heads import HEADS, LabelQueryHead, build_head

DIM, CU = 24, torch.tensor([0, 4, 5, 11], dtype=torch.int32)  # three images, the second without patches
NAMES = [f"disease {i}" for i in range(14)]


def tiny_encoder(**kwargs):
    return hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1, embed_dim=DIM, num_heads=3, **kwargs)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("count", [1, 14])
def test_images_of_a_batch_do_not_touch_each_other(head, count):
    values = torch.randn(11, DIM)
    module = build_head(head, DIM, NAMES[:count], 3).eval()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    logits = module(values, CU, 6)
    assert logits.shape == (3, count)
    for image in range(3):
        part = values[CU[image] : CU[image + 1]]
        alone = module(part, torch.tensor([0, len(part)], dtype=torch.int32), len(part))
        torch.testing.assert_close(logits[image : image + 1], alone, rtol=1e-4, atol=1e-5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_label_queries_from_text_answer_for_new_names():
    text = torch.randn(3, 7)
    head = LabelQueryHead(DIM, NAMES[:3], 3, text).eval()
    values = torch.randn(11, DIM)
    logits = head(values, CU, 6)
    torch.testing.assert_close(head(values, CU, 6, text=text), logits)
    swapped = head(values, CU, 6, text=text[[2, 0, 1]])  # the order of the questions does not matter
    torch.testing.assert_close(swapped, logits[:, [2, 0, 1]], rtol=1e-4, atol=1e-5)
    assert head(values, CU, 6, text=torch.randn(5, 7)).shape == (3, 5)
    with pytest.raises(hx.ArgumentError, match=r"^text: this head"):
        LabelQueryHead(DIM, NAMES[:3], 3)(values, CU, 6, text=text)
    with pytest.raises(hx.ArgumentError, match=r"^text: got"):
        LabelQueryHead(DIM, NAMES[:3], 3, torch.randn(4, 7))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("multiclass", [False, True])
def test_a_classifier_comes_back_from_disk(tmp_path, head, multiclass):
    text = torch.randn(3, 5) if head == "label-query" else None
    config = ClassifierConfig(NAMES[:3], head=head, multiclass=multiclass, thresholds=[0.1, 0.2, 0.3])
    encoder = tiny_encoder(keep="contour", contour="rectangle", normalisation=(0.5, 0.25))
    model = Classifier(encoder, config, text).eval()
    for parameter in model.head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    again = load_classifier(save_classifier(model, tmp_path / "model"))
    with torch.no_grad():
        probabilities = model.probabilities(model(images))
        torch.testing.assert_close(again.probabilities(again(images)), probabilities)
    assert again.config == config
    assert again.encoder.config == model.encoder.config
    if multiclass:
        torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    assert ((probabilities > 0) & (probabilities < 1)).all()


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_norm_after_pooling_is_not_forgotten(pool):
    """Encoders of timm's kind normalise the pooled feature; a probe is fitted on what they give."""
    encoder = tiny_encoder(fc_norm=True, pool=pool)
    encoder.fc_norm.weight.data += torch.rand(DIM)
    model = Classifier(encoder, ClassifierConfig(["mass"], head="probe", pool=pool)).eval()
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        model.head.fc.weight.normal_()
        expected = model.head.fc(encoder(images))
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("keep", ["all", "valid", "contour"])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("head", ["linear", "attention"])
def test_without_a_plan_it_looks_where_its_encoder_does(keep, given, head):
    """As the encoder alone does: with grids that are handed over, or contours that it finds."""
    encoder = tiny_encoder(keep=keep, margin=0).eval()
    model = Classifier(encoder, ClassifierConfig(["mass"], head=head)).eval()
    for parameter in model.head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1, :, 2:] = False
    grids = {"inside": torch.rand(2, 4, 4) < 0.5, "valid": valid} if given else {}
    with torch.no_grad():
        expected = model.classify(encoder(images, **grids))
        torch.testing.assert_close(model(images, **grids), expected)
        if keep == "contour" or (given and keep == "valid"):
            everywhere = model(images, hx.plan_all(torch.ones(2, 4, 4, dtype=torch.bool)), 1.0, 0.0)
            assert not torch.allclose(everywhere, expected)
    if keep == "contour":
        with pytest.raises(hx.ArgumentError, match=r"^inside: is needed"):
            model(images.float())
    else:
        assert model(images.float()).isfinite().all()


def test_contours_are_not_looked_for_behind_a_view():
    model = Classifier(tiny_encoder(keep="contour"), ClassifierConfig(["mass"])).eval()
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    view = hx.View(torch.eye(3)[:2].expand(2, 2, 3).contiguous())
    with pytest.raises(hx.ArgumentError, match=r"^inside: is needed with a view"):
        model(images, None, 1.0, 0.0, view=view)
    inside = torch.rand(2, 4, 4) < 0.5
    with torch.no_grad():
        expected = model(images, None, 1.0, 0.0, inside=inside)
        torch.testing.assert_close(model(images, None, 1.0, 0.0, inside=inside, view=view), expected)


def test_damaged_folders_are_named(tmp_path):
    model = Classifier(tiny_encoder(), ClassifierConfig(["mass"]))
    folder = save_classifier(model, tmp_path)
    with pytest.raises(hx.CheckpointError, match=r"nowhere: is missing; a classifier is the folder that probe or"):
        load_classifier(tmp_path / "nowhere")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(hx.CheckpointError, match=r"begun: is a training that has not ended \(the same finetune"):
        load_classifier(tmp_path / "begun")
    (tmp_path / "empty").mkdir()
    with pytest.raises(hx.CheckpointError, match=r"empty.classifier.json: is missing"):
        load_classifier(tmp_path / "empty")
    save_classifier(model, tmp_path / "run" / "model")
    assert load_classifier(tmp_path / "run").config == model.config
    saved = (folder / "head.safetensors").read_bytes()
    for damage in (b"", saved[: len(saved) // 2]):
        (folder / "head.safetensors").write_bytes(damage)
        with pytest.raises(hx.CheckpointError, match=r"head.safetensors: is damaged"):
            load_classifier(folder)
    (folder / "head.safetensors").unlink()
    with pytest.raises(hx.CheckpointError, match=r"head.safetensors: is missing"):
        load_classifier(folder)
    save_file({"fc.bias": torch.zeros(3)}, folder / "head.safetensors")
    with pytest.raises(hx.CheckpointError, match=r"head.safetensors: does not fit classifier.json"):
        load_classifier(folder)
    (folder / "classifier.json").write_text("{")
    with pytest.raises(hx.CheckpointError, match=r"classifier.json: is damaged"):
        load_classifier(folder)


def test_bad_arguments_are_named():
    with pytest.raises(hx.ArgumentError, match=r"^classes: "):
        ClassifierConfig([])
    with pytest.raises(hx.ArgumentError, match=r"^classes: "):
        ClassifierConfig(["a", "a"])
    with pytest.raises(hx.ArgumentError, match=r"^head: "):
        Classifier(tiny_encoder(), ClassifierConfig(["a"], head="mlp"))
    with pytest.raises(hx.ArgumentError, match=r"^pool: "):
        Classifier(tiny_encoder(class_token=False), ClassifierConfig(["a"], pool="cls"))
    with pytest.raises(hx.ArgumentTypeError, match=r"^encoder: "):
        Classifier(torch.nn.Identity(), ClassifierConfig(["a"]))


def test_classes_and_transform_stand_where_they_are_looked_for(tmp_path):
    model = Classifier(tiny_encoder(), ClassifierConfig(["mass", "edema"])).eval()
    assert model.classes == ["mass", "edema"]
    model.classes.append("other")
    assert model.config.classes == ["mass", "edema"]
    film = np.random.default_rng(0).integers(0, 256, (40, 64), np.uint8)
    np.testing.assert_array_equal(model.transform()(film), model.encoder.transform()(film))
