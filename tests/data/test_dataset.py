"""Samples and their order are functions of counters alone."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from cache_helpers import cached

from hdxray_fast.data.augment import Augmentation, RandAugment
from hdxray_fast.data.listing import list_images
from hdxray_fast.data.radiograph_dataset import RadiographDataset
from hdxray_fast.data.radiographs import standardisation_of_view
from hdxray_fast.data.sampler import StepSampler
from hdxray_fast.errors import ArgumentError
from hdxray_fast.images.standardise import standardisation
from hdxray_fast.ops.view import View, view_images_ref


@pytest.fixture
def images(radiographs, tmp_path):
    return cached(list_images(radiographs), tmp_path / "cache")[0]


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_sample_shapes_and_standardisation(images):
    sample = RadiographDataset(images)[0, 3]
    assert sample["pixels"].shape == (1, 128, 128) and sample["pixels"].dtype == torch.uint8
    assert sample["inside"].shape == sample["valid"].shape == (8, 8)
    assert not (sample["inside"] & ~sample["valid"]).any()
    inside = sample["valid"].repeat_interleave(16, 0).repeat_interleave(16, 1)
    values = sample["pixels"][0][inside] * sample["scale"] + sample["shift"]
    assert abs(values.mean()) < 1e-3 and abs(values.std() - 1) < 1e-3


def test_augmentation_depends_on_seed_epoch_and_index_alone(images):
    def dataset(seed):
        return RadiographDataset(images, augmentation=Augmentation(), seed=seed)

    assert same(dataset(0)[2, 1], dataset(0)[2, 1])
    for other in (dataset(1)[2, 1], dataset(0)[3, 1]):
        assert not torch.equal(dataset(0)[2, 1]["pixels"], other["pixels"])


def test_no_augmentation_mirrors_the_heart():
    rng = np.random.default_rng(0)
    for _ in range(200):
        affine, tone = Augmentation().draw(rng, 128)
        assert np.linalg.det(affine[:, :2]) > 0
        middle = int(tone(np.full((1, 1), 128, np.uint8))[0, 0])
        assert 100 < middle < 155  # an exponent between 2 ** -0.3 and 2 ** 0.3


def test_contour_and_valid_area_move_with_the_pixels(images):
    """A pure shift by whole patches shifts the grids by as many cells."""

    class Shift(Augmentation):
        def draw(self, rng, size):
            return np.array([[1, 0, 16.0], [0, 1, 0]]), lambda pixels: pixels

    plain = RadiographDataset(images)[0, 0]
    moved = RadiographDataset(images, augmentation=Shift())[0, 0]
    assert torch.equal(moved["pixels"][..., 16:], plain["pixels"][..., :-16])
    assert torch.equal(moved["inside"][:, 1:], plain["inside"][:, :-1])
    assert torch.equal(moved["valid"][:, 1:], plain["valid"][:, :-1])


def test_smaller_scales_are_drawn_beside_all_else_and_about_the_centre():
    """A scale between ``min_scale`` and 1 follows the map that is drawn without."""
    usual, scaled, scales = Augmentation(), Augmentation(min_scale=0.5), []
    for seed in range(300):
        (before, tone), (after, same_tone) = (a.draw(np.random.default_rng(seed), 128) for a in (usual, scaled))
        scales.append(np.sqrt(np.linalg.det(after[:, :2]) / np.linalg.det(before[:, :2])))
        for point in ([0.0, 0, 1], [100, 30, 1]):
            np.testing.assert_allclose(after @ point - 64, scales[-1] * (before @ point - 64), atol=1e-9)
        grey = np.arange(256, dtype=np.uint8)[None]
        assert np.array_equal(tone(grey), same_tone(grey))
    assert 0.5 <= min(scales) < 0.52 and 0.97 < max(scales) <= 1
    assert 0.66 < np.median(scales) < 0.76  # 0.5 ** 0.5: evenly by logarithm


@pytest.mark.parametrize(("bits", "min_scale"), [(8, 1.0), (16, 1.0), (8, 0.5)])
def test_a_view_shows_what_moving_every_pixel_shows(images, bits, min_scale, monkeypatch):
    if bits == 16:  # the same pictures with finer levels
        plain = type(images).__getitem__
        finer = lambda self, i: plain(self, i)._replace(pixels=plain(self, i).pixels.astype(np.uint16) * 257)  # noqa: E731
        monkeypatch.setattr(type(images), "__getitem__", finer)
    augmentation = Augmentation(min_scale=min_scale)
    moved = RadiographDataset(images, augmentation=augmentation, seed=3)
    seen = RadiographDataset(images, augmentation=augmentation, seed=3, views=True)
    for index in range(len(images)):
        expected, sample = moved[1, index], seen[1, index]
        assert torch.equal(sample["pixels"][0], torch.from_numpy(images[index].pixels.copy()))
        view = View(sample["affine"][None], sample["table"][None])
        shown = view_images_ref(sample["pixels"][None], view)[0]
        apart = (shown.int() - expected["pixels"].int()).abs() / (257 if bits == 16 else 1)
        assert apart.max() <= 4 and apart.float().mean() < 0.1  # levels: OpenCV rounds places to 1/32 of a pixel
        for name in ("inside", "valid", "index", "draw"):
            assert torch.equal(sample[name], expected[name])
        frame = torch.zeros_like(sample["pixels"])
        top, left, height, width = images[index].valid_box
        frame[:, top : top + height, left : left + width] = 255
        radiograph = view_images_ref(frame[None], View(sample["affine"][None]))[0] == 255
        values = shown[radiograph].float() * sample["scale"] + sample["shift"]
        assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1  # but for what was moved out of the canvas


def test_what_no_table_can_express_is_refused_by_name(images):
    with pytest.raises(ArgumentError, match="cannot express RandAugment"):
        RadiographDataset(images, augmentation=RandAugment(), views=True)


def test_a_view_is_standardised_as_its_pixels_are():
    rng = np.random.default_rng(0)
    pixels = np.zeros((320, 320), np.uint8)
    pixels[40:280, 60:300] = rng.integers(0, 256, (240, 240))
    table = rng.permutation(256).astype(np.uint8)
    box = (40, 60, 240, 240)
    scale, shift = standardisation_of_view(pixels, box, table)
    values = table[pixels[40:280, 60:300]] * scale + shift
    assert abs(values.mean()) < 1e-9 and abs(values.std() - 1) < 1e-9
    flat = standardisation_of_view(np.full((32, 32), 7, np.uint8), (0, 0, 32, 32), table)
    assert flat == (1.0, -float(table[7]))


def test_a_lost_cache_is_read_from_the_files_in_training(images, tmp_path):
    dataset = RadiographDataset(images)
    before = dataset[0, 2]
    shutil.rmtree(tmp_path / "cache")
    assert same(dataset[0, 2], before)


def test_flat_image_stays_finite():
    scale, shift = standardisation(np.full((32, 32), 7, np.uint8), np.ones((2, 2), bool))
    assert np.isfinite([scale, shift]).all()


def test_sampler_covers_each_epoch_once_and_resumes_anywhere():
    whole = [key for batch in StepSampler(5, 3, last=10, seed=1) for key in batch]
    for epoch in range(6):
        assert sorted(index for e, index in whole if e == epoch) == list(range(5))
    tail = [key for batch in StepSampler(5, 3, first=4, last=10, seed=1) for key in batch]
    assert tail == whole[12:]
    assert whole != [key for batch in StepSampler(5, 3, last=10, seed=2) for key in batch]


def test_ranks_share_one_walk():
    alone = list(StepSampler(7, 4, last=5))
    pair = [list(StepSampler(7, 2, last=5, rank=rank, world_size=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*pair, strict=True)] == alone
