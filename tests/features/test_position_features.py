"""What of a feature comes from its place: the mean over films that were moved about, each place seen as often."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.features import position_features as module
from hdxray_fast.features.patch_features import patch_features
from hdxray_fast.features.position_features import VIEWS, Film, moved, position_features

CPU = torch.device("cpu")
EVERYWHERE = np.arange(16)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    net = {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 3, "contour": "rectangle"}
    return hx.create_encoder("vit_tiny_patch16", **net).eval()


def film(pixels, box=(0, 0, 64, 64)):
    return Film(np.asarray(pixels, np.uint8), box, 0.02, -1.0)


def test_a_film_is_moved_within_itself_and_its_mirror_image():
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, 16:48] = np.arange(32) + 100  # the rest is padding
    canvas = moved(film(pixels, (0, 16, 64, 32)), 0.0, 0.25)
    assert canvas[0].tolist() == [*range(116, 132), *range(131, 99, -1), *range(100, 116)]
    assert (canvas == canvas[0]).all()
    rows = moved(film(pixels.T, (16, 0, 32, 64)), 0.25, 0.0)
    assert np.array_equal(rows, canvas.T)


def test_of_a_film_without_tissue_nothing_but_the_place_is_left(encoder):
    blank = film(np.full((64, 64), 90))
    batch = {"pixels": torch.from_numpy(blank.pixels)[None, None], "valid": torch.ones(1, 4, 4, dtype=torch.bool)}
    batch |= {"inside": batch["valid"], "scale": torch.tensor([0.02]), "shift": torch.tensor([-1.0])}
    found = patch_features(encoder, batch, "valid")
    positions = position_features(encoder, [blank], EVERYWHERE, CPU)
    assert positions.std(0).mean() > 0.1  # the places differ
    np.testing.assert_allclose(found.without(positions).values, 0, atol=2e-3)


def test_what_is_left_goes_with_the_tissue():
    """When a film is moved by half its width, the features of its patches go along, better without those of places."""
    encoder = hx.create_encoder(weights="pretrained", img_size=256).eval()
    chest = draw_radiograph(0, 256, 256)
    everywhere = torch.ones(1, 16, 16, dtype=torch.bool)
    batch = {"inside": everywhere, "valid": everywhere, "scale": torch.tensor([0.02]), "shift": torch.tensor([-2.0])}
    here, there = (
        patch_features(encoder, {**batch, "pixels": torch.from_numpy(pixels)[None, None]}, "valid")
        for pixels in (chest, np.roll(chest, 128, axis=1))
    )

    def likeness(positions):
        a, b = (item.without(positions).values.astype(np.float32).reshape(16, 16, -1) for item in (here, there))
        a, b = a - a.mean((0, 1)), np.roll(b, 8, axis=1) - b.mean((0, 1))
        return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())

    positions = position_features(encoder, [Film(chest, (0, 0, 256, 256), 0.02, -2.0)], np.arange(256), CPU)
    assert likeness(positions) > likeness(np.zeros_like(positions)) + 0.05


def test_each_place_is_seen_once_a_view_and_each_film_as_often(encoder, monkeypatch):
    """Also where a view is looked at in several pieces."""
    monkeypatch.setattr(module, "AT_ONCE", 3)
    shown, told = [], []

    def ones(encoder, images, plan, scale, shift):
        shown.append(int(images[0, 0, 0, 0]))
        assert len(plan.keep_ids) <= 3
        return torch.ones(len(plan.keep_ids), 24)

    monkeypatch.setattr(module, "_patches", ones)
    films = [film(np.full((64, 64), number)) for number in range(3)]
    places = np.array([1, 2, 5, 6, 7, 9, 10])
    positions = position_features(encoder, films, places, CPU, lambda: told.append(1))
    assert (positions[places] == 1).all() and (np.delete(positions, places, 0) == 0).all()
    assert len(told) == VIEWS and len(shown) == 3 * VIEWS
    assert np.bincount(shown).min() >= 3 * (VIEWS // 3) and shown == sorted(shown)


def test_the_same_films_give_the_same(encoder):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64))
    a, b = (position_features(encoder, [film(pixels)], EVERYWHERE, CPU) for _ in range(2))
    assert np.array_equal(a, b)


def test_what_the_encoder_is_given_is_where_it_runs(encoder, monkeypatch):
    """On a GPU nothing of it may be left on the host; a device without memory stands for one."""

    def looks(encoder, images, plan, scale, shift):
        assert {x.device.type for x in (images, plan.keep_ids, plan.keep_cu_seqlens, scale, shift)} == {"meta"}
        raise StopIteration

    monkeypatch.setattr(module, "_patches", looks)
    with pytest.raises(StopIteration):
        position_features(encoder, [film(np.zeros((64, 64)))], EVERYWHERE, torch.device("meta"))
