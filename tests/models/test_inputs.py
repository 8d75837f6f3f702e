"""What an encoder is shown of an image, decided in one place for training, embedding, prediction and reports."""

from __future__ import annotations

import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
import torch
from toy_radiographs import draw_radiograph
from view_helpers import maps

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig
from hdxray_fast.data.radiographs import read_radiograph
from hdxray_fast.models.inputs import (
    all_channels,
    as_batch,
    encoder_inputs,
    own_scale,
    patches_to_keep,
    standardised,
    view_of,
)
from hdxray_fast.models.selection import selected_patches
from hdxray_fast.ops.view import view_images_ref

SIZE, PATCH = 64, 16


def small_encoder(**settings):
    return hx.create_encoder("vit_tiny_patch16", img_size=SIZE, depth=1, embed_dim=24, num_heads=3, **settings).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("films")
    for seed in range(3):
        cv2.imwrite(str(folder / f"{seed}.png"), draw_radiograph(seed))
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def read(files):
    """Read once: the contour net takes a tenth of a second."""
    return [read_radiograph(file, file, SIZE, PATCH) for file in files]


def test_a_batch_holds_what_was_read(read):
    batch = as_batch(read)
    assert batch["pixels"].shape == (3, 1, SIZE, SIZE) and batch["pixels"].dtype == torch.uint8
    for number, item in enumerate(read):
        assert np.array_equal(batch["pixels"][number, 0], item.pixels)
        assert np.array_equal(batch["inside"][number], item.inside)
        assert np.array_equal(batch["valid"][number], item.valid)
        assert batch["scale"][number] == np.float32(item.scale) and batch["shift"][number] == np.float32(item.shift)
    assert batch["scale"].dtype == batch["shift"].dtype == torch.float32


@pytest.mark.parametrize("keep", ["valid", "contour"])
@pytest.mark.parametrize("asked", [None, "all", "valid", "contour"])
def test_the_patches_are_those_that_keep_says(read, keep, asked):
    encoder, batch = small_encoder(keep=keep, margin=0), as_batch(read)
    images, plan, _, _ = encoder_inputs(encoder, batch, asked)
    if asked == "all":
        assert plan is None
        return
    expected = selected_patches(
        asked or keep, images, encoder.grid_size, encoder.patch_size, batch["inside"], batch["valid"], 0
    )
    assert torch.equal(plan.keep_ids, expected.keep_ids)
    assert torch.equal(plan.keep_cu_seqlens, expected.keep_cu_seqlens)


def test_an_encoder_of_all_patches_has_no_plan(read):
    assert encoder_inputs(small_encoder(), as_batch(read)).plan is None


@pytest.mark.parametrize("in_chans", [1, 3])
def test_channels_are_views_of_one(read, in_chans):
    batch = as_batch(read)
    images = all_channels(small_encoder(in_chans=in_chans), batch["pixels"])
    assert images.shape == (3, in_chans, SIZE, SIZE) and images.data_ptr() == batch["pixels"].data_ptr()
    assert all(torch.equal(images[:, channel], batch["pixels"][:, 0]) for channel in range(in_chans))


def test_each_image_has_its_own_scale_or_the_encoder_knows_it(read):
    batch = as_batch(read)
    scale, shift = own_scale(small_encoder(), batch)
    assert scale is batch["scale"] and shift is batch["shift"]
    assert own_scale(small_encoder(normalisation=(0.5, 0.25)), batch) == (None, None)


@pytest.mark.parametrize("normalisation", ["per_image", (0.52, 0.24)])
def test_standardised_pixels_are_what_the_encoder_makes_of_whole_ones(read, normalisation):
    encoder, batch = small_encoder(normalisation=normalisation), as_batch(read)
    pixels = standardised(encoder, batch)
    if normalisation == "per_image":
        expected = batch["pixels"].float() * batch["scale"].view(-1, 1, 1, 1) + batch["shift"].view(-1, 1, 1, 1)
        assert torch.equal(pixels, expected)
    else:
        np.testing.assert_allclose(pixels, (batch["pixels"].numpy() / 255 - 0.52) / 0.24, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        shown = encoder.encode(*encoder_inputs(encoder, batch)).values
        given = encoder.encode(pixels, None, 1.0, 0.0).values
    torch.testing.assert_close(shown, given, rtol=1e-4, atol=1e-5)


def test_embedding_shows_the_encoder_the_same(read):
    encoder = small_encoder(keep="contour", pool="mean")
    with torch.no_grad():
        expected = encoder.pool_tokens(encoder.encode(*encoder_inputs(encoder, as_batch(read))), "mean")
    found = hx.embed([item.source for item in read], encoder, device="cpu", batch_size=3)
    assert np.array_equal(found.features, expected.numpy())


def test_images_of_another_size_are_refused(read):
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=128, depth=1, embed_dim=24, num_heads=3, keep="valid")
    with pytest.raises(hx.ArgumentError, match="images: got shape"):
        patches_to_keep(encoder, as_batch(read)["pixels"], None, None)


@pytest.mark.parametrize("keep", ["all", "valid", "contour"])
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("normalisation", ["per_image", (0.52, 0.24)])
def test_a_view_shows_the_encoder_what_its_pixels_would(read, keep, in_chans, normalisation):
    encoder = small_encoder(keep=keep, in_chans=in_chans, normalisation=normalisation)
    batch = as_batch(read)
    assert view_of(batch) is None
    batch["affine"] = maps(SIZE, SIZE, 5.0)
    batch["table"] = torch.arange(255, -1, -1, dtype=torch.uint8).repeat(3, 1)
    pixels = view_images_ref(batch["pixels"], view_of(batch))
    with torch.no_grad():
        seen = encoder.encode(*encoder_inputs(encoder, batch), view=view_of(batch))
        shown = encoder.encode(*encoder_inputs(encoder, {**batch, "pixels": pixels}))
        plain = encoder.encode(*encoder_inputs(encoder, batch))
    assert torch.equal(seen.values, shown.values) and torch.equal(seen.cu_seqlens, shown.cu_seqlens)
    assert not torch.allclose(seen.values, plain.values)


def test_a_plan_in_the_batch_stands(read):
    encoder, batch = small_encoder(keep="contour"), as_batch(read)
    plan = encoder_inputs(encoder, batch, "valid").plan
    without = {name: batch[name] for name in ("pixels", "scale", "shift")}
    assert encoder_inputs(encoder, {**without, "plan": plan}).plan is plan
    assert encoder_inputs(encoder, {**without, "plan": None}).plan is None


def test_the_scale_of_what_a_view_shows_is_asked_for(read):
    batch = as_batch(read)
    view = hx.View(maps(SIZE, SIZE, 5.0))
    with pytest.raises(hx.ArgumentError, match="scale: is needed with a view"):
        small_encoder().encode(batch["pixels"], view=view)


def test_neither_training_nor_files_are_needed():
    code = (
        "import sys, hdxray_fast.models.inputs; "
        "print([name for name in ('training', 'task', 'data', 'prepare', 'radiographs', 'files') "
        "if f'hdxray_fast.{name}' in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_a_tensor_that_does_not_tell_its_padding_is_warned_of():
    images = torch.randint(0, 256, (1, 1, SIZE, SIZE), dtype=torch.uint8)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    encoder = small_encoder(keep="valid")
    classifier = Classifier(encoder, ClassifierConfig(["mass"])).eval()
    for model in (encoder, classifier):
        with pytest.warns(UserWarning, match=r"^valid: a tensor does not tell its padding") as told:
            model(images)
        assert [line.filename for line in told] == [__file__]  # the caller's line, once
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(images, valid=valid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_encoder(keep="contour")(images, inside=valid)
        small_encoder()(images)
