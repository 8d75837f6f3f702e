"""Images are dealt out evenly, the same ones as before, by every process alike."""

from __future__ import annotations

import numpy as np
import pytest
from cache_helpers import cached

from hdxray_fast.data.balance import deal_evenly, kept_patches
from hdxray_fast.data.listing import list_images
from hdxray_fast.data.radiograph_dataset import RadiographDataset
from hdxray_fast.data.sampler import StepSampler
from hdxray_fast.ops.mask_plan import plan_masks


def spread(costs: np.ndarray, dealt: list[list[int]]) -> float:
    sums = [costs[batch].sum() for batch in dealt]
    return max(sums) / np.mean(sums)


@pytest.mark.parametrize(("batches", "room"), [(1, 5), (2, 1), (2, 2), (3, 7), (8, 4), (64, 8)])
def test_every_image_is_dealt_once_in_equal_numbers(batches, room):
    costs = np.random.default_rng(batches).uniform(100, 1000, batches * room)
    dealt = deal_evenly(costs, batches)
    assert sorted(position for batch in dealt for position in batch) == list(range(batches * room))
    assert {len(batch) for batch in dealt} == {room}
    assert dealt == deal_evenly(costs, batches)


@pytest.mark.parametrize(("batches", "room"), [(2, 4), (3, 7), (8, 4), (64, 8)])
def test_batches_cost_nearly_the_same(batches, room):
    rng = np.random.default_rng(1)
    for _ in range(20):
        costs = rng.normal(700, 100, batches * room).clip(50)
        as_they_come = np.arange(batches * room).reshape(batches, room).tolist()
        even, before = spread(costs, deal_evenly(costs, batches)), spread(costs, as_they_come)
        assert even <= before
        assert even < 1.03


def test_one_dear_image_and_equal_ones():
    assert spread(np.array([9.0, 1, 1, 1, 1, 1]), deal_evenly(np.array([9.0, 1, 1, 1, 1, 1]), 2)) < 1.6
    assert deal_evenly(np.ones(6), 3) == deal_evenly(np.full(6, 7.0), 3)
    assert deal_evenly(np.zeros(4), 2)  # nothing to divide by


def test_a_step_has_the_same_images_whoever_shares_them():
    costs = np.random.default_rng(0).uniform(1, 9, 11)
    splits = [(8, 1, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4), (1, 8, 1)]  # batch, accumulation, ranks
    steps = []
    for batch, accum, ranks in splits:
        options = {"first": 2 * accum, "last": 6 * accum, "grad_accum": accum, "world_size": ranks, "costs": costs}
        walks = [list(StepSampler(11, batch, rank=rank, **options)) for rank in range(ranks)]
        assert all(len(walk) == 4 * accum for walk in walks)
        parts = [[walk[s * accum : (s + 1) * accum] for walk in walks] for s in range(4)]
        steps.append([sorted(key for walk in step for part in walk for key in part) for step in parts])
    assert all(each == steps[0] for each in steps)


def test_shares_tell_what_the_plan_keeps(radiographs, tmp_path):
    images, _ = cached(list_images(radiographs), tmp_path / "cache")
    data = RadiographDataset(images)
    for index, cost in enumerate(data.kept_patches(0.8, 0.6)):
        sample = data[0, index]
        plan = plan_masks(
            sample["inside"][None], sample["valid"][None], ratio_inside=0.8, ratio_outside=0.6, predict=1.0
        )
        assert abs(plan.keep_ids.numel() - cost) <= 1  # rounding of two ratios
    assert kept_patches(np.array([0.5]), np.array([0.4]), 100, 0.5, 0.5) == [25]  # a rounded share is no negative one


def test_the_largest_clusters_are_dealt_in_a_few_array_operations(monkeypatch):
    """512 processes of 32 images: no Python step per image, or each process would be busy with it for every step."""
    import hdxray_fast.data.balance as balance

    calls, whole = [0], np.argsort

    def counted(*arguments, **options):
        calls[0] += 1
        return whole(*arguments, **options)

    monkeypatch.setattr(balance.np, "argsort", counted)
    costs = np.random.default_rng(3).normal(700, 100, 512 * 32).clip(50)
    dealt = deal_evenly(costs, 512)
    assert calls[0] <= 1 + 32 + balance.MOST_SWAPS
    assert spread(costs, dealt) < 1 + 2 * balance.EVEN
