"""`MaskPlan` itself, upper bounds of its lengths, and the plan that keeps everything."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from plan_helpers import TENSORS, assert_same, ellipse, images_of

import hdxray_fast as hx
from hdxray_fast.ops import mask_plan, native
from hdxray_fast.ops.plan import fetch_packed


def test_plan_all_keeps_every_valid_patch():
    _, valid = ellipse(3, 7, 20)
    valid[1] = False
    plan = hx.plan_all(valid, patch_size=8)
    assert images_of(plan) == [v.flatten().nonzero().flatten().tolist() for v in valid]
    assert plan.predict_ids.numel() == 0
    assert plan.predict_cu_seqlens.tolist() == [0, 0, 0, 0]
    assert (plan.grid_size, plan.patch_size, plan.max_keep) == ((7, 20), 8, int(valid.flatten(1).sum(1).max()))


def test_plan_all_needs_no_core(monkeypatch):
    _, valid = ellipse(3, 7, 20)
    expected = hx.plan_all(valid)
    monkeypatch.setattr(native, "core", None)
    assert_same(hx.plan_all(valid), expected)


# --- bounds -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bounds_are_held_on_the_cpu_and_leave_no_slack(backend):
    inside, valid = ellipse(3, 12, 13)
    plan = hx.plan_masks(inside, valid, backend=backend)
    exact = {"max_keep": plan.max_keep, "max_predict": plan.max_predict}
    assert_same(plan, hx.plan_masks(inside, valid, backend=backend, **exact))
    assert_same(plan, hx.plan_masks(inside, valid, backend=backend, max_keep=2**31 - 1))
    for name, most in exact.items():
        with pytest.raises(hx.ArgumentError, match=f"{name}: got {most - 1}, but an image of this batch has {most} "):
            hx.plan_masks(inside, valid, backend=backend, **{name: most - 1})
    with pytest.raises(hx.ArgumentError, match="max_keep: got 7"):
        hx.plan_all(valid, max_keep=7)


@pytest.mark.parametrize("strategy", mask_plan.STRATEGIES)
def test_plan_bounds_always_suffice(strategy):
    """Every split of small grids into inside, outside and padding; ratios at, between and just beside the ends."""
    rng = np.random.default_rng(5)
    shares = [0.0, 0.05, 0.5, 0.85, 0.95, 1.0, np.nextafter(1.0, 0.0), np.nextafter(0.5, 0.0), 1 / 3]
    for n in (1, 2, 3, 5, 8, 13, 40):
        splits = [(i, v) for v in range(n + 1) for i in range(v + 1)]
        inside, valid = (torch.arange(n) < torch.tensor([s[k] for s in splits])[:, None, None] for k in (0, 1))
        for _ in range(12 if n < 40 else 4):
            ratios, predict = rng.choice(shares, 2), float(rng.choice([0.0, 1e-9, 0.25, 0.5, 1.0]))
            plan = hx.plan_masks(inside, valid, *ratios.tolist(), strategy=strategy, predict=predict)
            max_keep, max_predict = hx.plan_bounds((1, n), *ratios.tolist(), predict)
            assert plan.max_keep <= max_keep <= n, (n, ratios, predict)
            assert plan.max_predict <= max_predict < n, (n, ratios, predict)


def test_plan_bounds_are_close_where_all_patches_are_alike():
    grid = torch.zeros(1, 80, 80, dtype=torch.bool)
    for predict in (1.0, 0.25):
        plan = hx.plan_masks(grid, ~grid, 0.85, 0.85, predict=predict)
        max_keep, max_predict = hx.plan_bounds((80, 80), 0.85, 0.85, predict)
        assert plan.max_keep <= max_keep <= plan.max_keep + 1
        assert plan.max_predict <= max_predict <= plan.max_predict + 2
    assert hx.plan_bounds((80, 80), predict=0.0)[1] == 0
    assert hx.plan_bounds([1, 1]) == (1, 0)
    assert hx.plan_bounds((46340, 46340), 0.0, 0.0) == (46340**2, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"grid_size": 80}, hx.ArgumentTypeError, "grid_size: got int"),
        ({"grid_size": (80,)}, hx.ArgumentError, "grid_size: got 1 numbers"),
        ({"grid_size": (80, 0)}, hx.ArgumentError, r"grid_size\[1\]: got 0"),
        ({"grid_size": (8.0, 1)}, hx.ArgumentTypeError, r"grid_size\[0\]: got float"),
        ({"ratio_inside": 2}, hx.ArgumentError, "ratio_inside: got 2"),
        ({"predict": None}, hx.ArgumentTypeError, "predict: got NoneType"),
    ],
)
def test_plan_bounds_names_bad_arguments(arguments, error, says):
    with pytest.raises(error, match=says):
        hx.plan_bounds(**{"grid_size": (8, 8), **arguments})


def test_slack_is_trimmed_on_the_way_to_the_cpu():
    """`MaskPlan.to` does this to the ids of a plan on a GPU."""
    ids, cu = torch.tensor([3, 5, 1, 0, 0, 0], dtype=torch.int32), torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    kept, same, longest = fetch_packed(ids, cu)
    assert kept.tolist() == [3, 5, 1]
    assert torch.equal(same, cu)
    assert longest == 2


def test_plan_travels():
    plan = hx.plan_masks(*ellipse(2, 9, 9))
    assert_same(plan, pickle.loads(pickle.dumps(plan)))
    assert_same(plan, plan.to("cpu"))
    assert plan.batch_size == 2
    assert plan.device == torch.device("cpu")


# --- bad input --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"keep_ids": [0]}, hx.ArgumentTypeError, "plan.keep_ids: got list"),
        ({"keep_ids": torch.zeros(1)}, hx.ArgumentError, "plan.keep_ids: got dtype float32"),
        ({"predict_ids": torch.zeros(1, 1, dtype=torch.int32)}, hx.ArgumentError, "plan.predict_ids: got shape"),
        ({"keep_ids": torch.zeros(4, dtype=torch.int32)[::2]}, hx.ArgumentError, "plan.keep_ids"),
        ({"predict_cu_seqlens": torch.zeros(3, dtype=torch.int32)}, hx.ArgumentError, "plan.predict_cu_seqlens"),
        (
            {"predict_ids": torch.zeros(1, dtype=torch.int32, device="meta")},
            hx.ArgumentError,
            "plan.predict_ids: is on meta",
        ),
        ({"grid_size": 4}, hx.ArgumentTypeError, "plan.grid_size: got int"),
        ({"grid_size": (0, 4)}, hx.ArgumentError, r"plan.grid_size\[0\]: got 0"),
        ({"grid_size": (2, 2.0)}, hx.ArgumentTypeError, r"plan.grid_size\[1\]: got float"),
        ({"patch_size": 257}, hx.ArgumentError, "plan.patch_size: got 257"),
        ({"patch_size": None}, hx.ArgumentTypeError, "plan.patch_size: got NoneType"),
        ({"max_keep": -1}, hx.ArgumentError, "plan.max_keep: got -1"),
        ({"max_predict": 1.0}, hx.ArgumentTypeError, "plan.max_predict: got float"),
        ({"max_keep": 1}, hx.ArgumentError, "plan.max_keep: got 1, but plan.keep_ids holds 2 ids for 1 images"),
        (
            {"predict_cu_seqlens": torch.tensor([0, 2], dtype=torch.int32), "max_predict": 1},
            hx.ArgumentError,
            "plan.max_predict: got 1",
        ),
    ],
)
def test_plans_are_checked_when_made(changes, error, says):
    fields = {name: torch.zeros(2, dtype=torch.int32) for name in TENSORS}
    sizes = {"grid_size": (1, 2), "patch_size": 16, "max_keep": 2, "max_predict": 2}
    with pytest.raises(error, match=says):
        hx.MaskPlan(**{**fields, **sizes, **changes})
