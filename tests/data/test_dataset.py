"""Samples and their order are functions of counters alone."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from cache_helpers import cached

from hdxray_fast.data.augment import Augmentation
from hdxray_fast.data.listing import list_images
from hdxray_fast.data.radiograph_dataset import RadiographDataset
from hdxray_fast.data.radiographs import standardisation
from hdxray_fast.data.sampler import StepSampler


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
