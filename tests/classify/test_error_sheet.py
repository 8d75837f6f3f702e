"""Where a classifier looked, and the sheet of its most confident errors."""

from __future__ import annotations

import functools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.classify import error_sheet
from hdxray_fast.classify.attention_maps import PatchMap, film_map, patch_map
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig
from hdxray_fast.classify.error_sheet import confident_errors, full_colour, tinted, write_error_sheet
from hdxray_fast.classify.interval_text import beside_threshold
from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.data.radiographs import read_radiograph
from hdxray_fast.models.inputs import as_batch, encoder_inputs

NAN = float("nan")


def classifier(head="linear", pool="mean", **settings) -> Classifier:
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=2, embed_dim=24, num_heads=3, **settings)
    model = Classifier(encoder, ClassifierConfig(["a", "b"], head=head, pool=pool, contour="rectangle")).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@functools.cache
def film():
    return read_radiograph(draw_radiograph(0), "0.png", 64, 16)


def inputs(model):
    return encoder_inputs(model.encoder, as_batch([film()]))


@pytest.mark.parametrize("keep", ["all", "valid", "contour"])
@pytest.mark.parametrize(
    ("head", "pool"), [("linear", "cls"), ("attention", "mean"), ("label-query", "mean"), ("linear", "mean")]
)
def test_a_map_covers_what_was_looked_at(keep, head, pool):
    model = classifier(head, pool, keep=keep)
    images, plan, scale, shift = inputs(model)
    found = patch_map(model, 1, images, plan, scale, shift)
    assert found.values.shape == (4, 4)
    looked = np.isfinite(found.values)
    assert looked.sum() == (16 if plan is None else plan.keep_ids.numel())
    if found.signed:
        assert found.values[looked].mean() == pytest.approx(0, abs=1e-5)
        assert "share in the logit" in found.words
    else:
        assert (found.values[looked] > 0).all()
        assert 0.2 < found.values[looked].sum() <= 1.0001  # the rest lies on the class token
        assert "attention" in found.words


@pytest.mark.parametrize(("head", "pool"), [("linear", "cls"), ("linear", "mean")])
def test_padding_that_was_looked_at_is_not_shown_and_counts_as_outside(head, pool):
    model, chest = classifier(head, pool), np.zeros((4, 4), bool)
    chest[1:3, 1:3] = True
    padded = replace(film(), valid=np.arange(16).reshape(4, 4) < 12, inside=chest, flagged=False)
    whole, found = patch_map(model, 1, *inputs(model)), film_map(model, 1, padded)
    assert np.isfinite(whole.values).all() and (np.isfinite(found.values) == padded.valid).all()
    evidence = np.clip(whole.values, 0, None)
    assert found.outside == pytest.approx(1 - evidence[chest].sum() / evidence.sum())
    told = replace(found, values=100 * found.values * np.arange(4), signed=True)  # one that stands out
    assert replace(told, outside=0.62).off_chest == "62 % of it lies outside the chest contour"
    assert not any(replace(told, outside=share).off_chest for share in (None, 0.5))
    assert replace(told, outside=0.62, values=told.values / 1e9).off_chest == ""
    assert film_map(model, 1, replace(padded, flagged=True)).outside is None  # no contour to rely on


@pytest.mark.parametrize(("head", "pool"), [("linear", "cls"), ("attention", "mean"), ("linear", "mean")])
def test_without_a_plan_the_map_covers_what_the_encoder_keeps(head, pool):
    model = classifier(head, pool, keep="contour", margin=0)
    images, plan, _, _ = inputs(model)
    looked = np.isfinite(patch_map(model, 1, images).values)
    assert looked.sum() == plan.keep_ids.numel() < 16
    assert looked.ravel()[plan.keep_ids.numpy()].all()


def test_attention_is_that_of_the_model():
    """With values that tell the keys apart, the output of the model's own attention is the weighted mean."""
    model = classifier("attention")
    images, plan, scale, shift = inputs(model)
    attention = model.head.attn_pool.attn
    width, heads = 24, 3
    with torch.no_grad():
        tokens = model.encoder.encode(images, plan, scale, shift)
        attention.proj.weight.copy_(torch.eye(width))
        attention.proj.bias.zero_()
        attention.kv.weight[width:] = 0  # every value is one and the same row of ones, but that of one token
        attention.kv.bias[width:] = 0
        seen = {}

        def put_value(module, args, output):
            output = output.clone()
            output[5, width:] = 1.0
            return output

        handle = attention.kv.register_forward_hook(put_value)
        attention.register_forward_hook(lambda module, args, output: seen.update(out=output))
        model.classify(tokens)
        handle.remove()
    expected = seen["out"][0].view(heads, -1).mean()
    found = patch_map(model, 0, images, plan, scale, shift)
    assert found.values.ravel()[5 - 1] == pytest.approx(float(expected), abs=1e-5)


def test_contributions_of_a_probe_add_up_to_the_logit():
    model = classifier("probe")
    images, plan, scale, shift = inputs(model)
    tokens = model.encoder.encode(images, plan, scale, shift)
    shares = (tokens.values[1:] @ model.head.fc.weight[1]) / 16
    logit = model(images, plan, scale, shift)[0, 1]
    torch.testing.assert_close(shares.sum() + model.head.fc.bias[1], logit, rtol=1e-4, atol=1e-4)
    found = patch_map(model, 1, images, plan, scale, shift)
    assert "to first order" not in found.words
    expected = (shares - shares.mean()).detach().numpy()
    np.testing.assert_allclose(found.values.ravel(), expected, atol=1e-5)


def test_the_most_confident_errors_of_both_kinds():
    labels = np.array([[0, 1], [1, 0], [0, NAN], [1, 1], [0, 0]], float)
    probabilities = np.array([[0.9, 0.2], [0.1, 0.8], [0.7, 0.9], [0.8, 0.4], [0.2, 0.1]])
    errors = confident_errors(labels, probabilities, [0.5, 0.5])
    positives = [(e.row, e.column) for e in errors if e.kind == "false positive"]
    negatives = [(e.row, e.column) for e in errors if e.kind == "false negative"]
    assert positives == [(0, 0), (1, 1), (2, 0)]
    assert negatives == [(1, 0), (0, 1), (3, 1)]  # an unknown label is no error
    rare = confident_errors(np.array([[0, 1], [0, 1]]), np.array([[0.6, 0.01], [0.7, 0.05]]), [0.5, 0.06])
    assert [(e.row, e.column) for e in rare] == [(1, 0), (0, 0), (0, 1), (1, 1)]
    rare = confident_errors(np.zeros((1, 2)), np.array([[0.6, 0.5]]), [0.55, 0.05])
    assert [e.column for e in rare] == [1, 0]  # 0.5 is further beyond 0.05 than 0.6 beyond 0.55
    few = confident_errors(labels, probabilities, [0.5, 0.5], most=4)
    assert [(e.row, e.column) for e in few] == [(0, 0), (1, 1), (1, 0), (0, 1)]
    one_kind = confident_errors(np.zeros((6, 1)), np.full((6, 1), 0.9), [0.5], most=4)
    assert len(one_kind) == 4
    assert len(confident_errors(np.ones((6, 1)), np.full((6, 1), 0.1), [0.5], most=4)) == 4
    exclusive = confident_errors(np.eye(2)[[0, 0, 1]], np.array([[0.3, 0.7], [0.9, 0.1], [0.6, 0.4]]), [0.5, 0.5], True)
    assert [(e.row, e.column, e.probability) for e in exclusive] == [(0, 1, 0.7), (2, 0, 0.6)]
    assert confident_errors(labels, np.where(labels == 1, 1.0, 0.0), [0.5, 0.5]) == []


def test_overlay_darkens_what_was_not_looked_at():
    model = classifier("attention", keep="contour")
    batch = inputs(model)
    found = patch_map(model, 0, *batch)
    values = np.full((4, 4), np.nan, np.float32)
    values[1, 1], values[1, 2] = 0.2, 0.8
    found = type(found)(values, False, "")
    view = tinted(np.full((64, 64), 100, np.uint8), found)
    assert view.shape == (64, 64, 3)
    assert view[:16].mean() == pytest.approx(35, abs=1)
    assert found.full == pytest.approx(0.6)  # 0.8 is 1.6 even shares of two patches
    blue, _, red = view[24, 40].astype(int)
    assert red > blue + 50 and view[24, 24, 0] > view[24, 24, 2] + 50  # more than an even share, and less


def test_colours_leave_the_picture_its_contrast():
    """Of what lies under the full colour as of what has none."""
    grey = np.tile(np.array([40, 80], np.uint8), (64, 32))
    plain, strong = (tinted(grey, PatchMap(np.full((4, 4), value, np.float32), True, "")) for value in (0.0, 1.0))
    light = [picture.mean(-1)[0].astype(float) for picture in (plain, strong)]
    assert np.diff(light[1][:2]) > 0.5 * np.diff(light[0][:2])


@pytest.mark.parametrize("signed", [True, False])
def test_a_map_of_nothing_in_particular_is_pale_and_says_so(signed):
    """Before, a hundred-thousandth of the logit was drawn like all of it."""
    grey, even = np.full((64, 64), 100, np.uint8), np.zeros((4, 4), np.float32)
    drawn, plain = {}, tinted(grey, PatchMap(even if signed else even + 1, signed, "")).astype(int)
    for size in (1e-5, 0.02, 1.0):  # one patch of sixteen, against all others
        values = even - size / 15
        values[1, 1] = size
        found = PatchMap(values if signed else (1 + 7 * values) / 16, signed, "")
        drawn[size] = np.abs(tinted(grey, found) - plain).max()
        assert ("no region stands out" in full_colour(found)) == (size < (0.1 if signed else 0.01))
        assert found.full * min(found.strength, 1) == pytest.approx(np.percentile(np.abs(found.shown), 99))
    assert drawn[1e-5] <= 1 and drawn[1.0] > 50
    assert drawn[0.02] < 0.35 * drawn[1.0] if signed else drawn[0.02] == drawn[1.0]
    assert PatchMap(np.full((4, 4), NAN, np.float32), signed, "").full == 1


def test_of_exclusive_classes_the_one_that_holds_is_named_if_it_is_known(radiographs, tmp_path, monkeypatch):
    captions = []
    monkeypatch.setattr(error_sheet, "captioned", lambda picture, words: captions.append(words[0]) or picture)
    paths = [str(path) for path in sorted(radiographs.glob("*.png"))[:2]]
    labels = np.array([[0, 1], [0, NAN]], np.float32)
    table = LabelTable(paths, labels, ["a", "b"], paths, ["test"] * 2, multiclass=True)
    model = classifier()
    model.config.multiclass = True
    write_error_sheet(tmp_path / "errors.png", model, table, np.array([[0.9, 0.1], [0.8, 0.2]]), [])
    assert captions == ["wrong class: a 0.90, is b", "wrong class: a 0.80"]


def test_a_probability_is_told_from_its_threshold():
    assert beside_threshold(0.62, 0.51) == "0.62 (threshold 0.51)"
    assert beside_threshold(0.51004, 0.51001) == "0.51004 (threshold 0.51001)"
    assert beside_threshold(0.5, 0.5) == "0.50 (threshold 0.50)"


@pytest.mark.parametrize("head", ["linear", "attention", "label-query"])
def test_the_sheet(radiographs, tmp_path, head):
    model = classifier(head)
    model.config.thresholds = [0.5, 0.5]
    paths = [str(path) for path in sorted(radiographs.glob("*.png"))]
    (radiographs / "4.png").write_bytes(b"")  # gone bad since: its tile is left out
    labels = np.array([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]], np.float32)
    table = LabelTable(paths, labels, ["a", "b"], paths, ["test"] * 5)
    probabilities = np.where(labels == 1, 0.1, 0.9)
    sheet = write_error_sheet(tmp_path / "errors.png", model, table, probabilities, [0.5, 0.5])
    picture = cv2.imread(str(sheet))
    assert picture.shape[1] > 3 * 600
    assert picture.std() > 20
    assert write_error_sheet(tmp_path / "errors.png", model, table, 1 - probabilities, [0.5, 0.5]) is None
    assert not (tmp_path / "errors.png").exists()
