"""Slack on the CPU: rows behind the last sequence stand for nothing, as on a GPU."""

from __future__ import annotations

import math

import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.errors import ArgumentError
from hdxray_fast.models.mae import create_mae
from hdxray_fast.ops.plan import MaskPlan, next_size
from hdxray_fast.ops.view import View

GRID, PATCH = (6, 7), 16


def plan_of(batch: int = 3, predict: float = 0.6) -> MaskPlan:
    generator = torch.Generator().manual_seed(1)
    inside = torch.rand(batch, *GRID, generator=generator) < 0.5
    valid = torch.rand(batch, *GRID, generator=generator) < 0.8
    return hx.plan_masks(inside, valid, 0.6, 0.4, predict=predict, patch_size=PATCH)


def images_of(dtype: torch.dtype = torch.uint8, batch: int = 3) -> torch.Tensor:
    size = (batch, 1, GRID[0] * PATCH, GRID[1] * PATCH)
    return torch.randint(0, 255, size, generator=torch.Generator().manual_seed(2)).to(dtype)


def with_nonsense(plan: MaskPlan) -> MaskPlan:
    """The plan rounded up, with ids in the slack that nobody may look at."""
    rounded = plan.rounded_up(0.5)
    for ids, cu_seqlens in (
        (rounded.keep_ids, rounded.keep_cu_seqlens),
        (rounded.predict_ids, rounded.predict_cu_seqlens),
    ):
        assert ids.shape[0] > int(cu_seqlens[-1])
        ids[int(cu_seqlens[-1]) :] = -7
    return rounded


@pytest.mark.parametrize("count", [*range(200), 1000, 21_472, 46_080, 368_640])
def test_sizes_add_at_most_their_share(count):
    size = next_size(count, 0.06)
    assert count <= size <= count * 1.06
    assert next_size(size, 0.06) == size


def test_sizes_are_few():
    mean, deviation = 32 * 671, math.sqrt(32) * 60
    totals = range(round(mean - 3 * deviation), round(mean + 3 * deviation))
    assert len({next_size(total, 0.06) for total in totals}) <= 3


def test_a_rounded_plan_is_the_plan_and_slack():
    plan = plan_of()
    rounded = plan.rounded_up()
    for name in ("keep", "predict"):
        ids, theirs = getattr(plan, f"{name}_ids"), getattr(rounded, f"{name}_ids")
        assert theirs.shape[0] == next_size(ids.shape[0], 0.06)
        assert torch.equal(theirs[: ids.shape[0]], ids)
        assert not theirs[ids.shape[0] :].any()
        assert torch.equal(getattr(plan, f"{name}_cu_seqlens"), getattr(rounded, f"{name}_cu_seqlens"))
    assert all(bound % 128 == 0 for bound in (rounded.max_keep, rounded.max_predict))


def test_the_grid_of_kept_patches():
    grids = torch.rand(3, 5, 7) < 0.5
    grids[1] = False
    plan = hx.plan_all(grids)
    assert torch.equal(plan.keep_grid(), grids)
    rounded = plan.rounded_up(slack=0.5)
    assert rounded.keep_ids.shape[0] > plan.keep_ids.shape[0]
    assert torch.equal(rounded.keep_grid(), grids)  # ids in the slack are 0, and stand for nothing
    assert hx.plan_all(grids[:0]).keep_grid().shape == (0, 5, 7)


def test_a_plan_of_nothing_stays_one():
    nothing = torch.zeros(2, *GRID, dtype=torch.bool)
    rounded = hx.plan_masks(nothing, nothing).rounded_up()
    assert rounded.keep_ids.shape[0] == rounded.predict_ids.shape[0] == 0


@pytest.mark.parametrize("which", ["keep", "predict"])
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("seen", [False, True], ids=["whole", "view"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_gather_writes_zeros(which, backend, seen, dtype):
    if backend == "native" and hx.ops.native.core is None:
        pytest.skip("the native core is missing")
    plan, images, view = plan_of(), images_of(dtype), None
    if seen:
        turn = torch.tensor([[0.9, 0.1, 3.0], [-0.1, 0.9, 5.0]]).expand(3, 2, 3)
        view = View(turn, torch.arange(255, -1, -1, dtype=torch.uint8).expand(3, 256) if dtype is torch.uint8 else None)
    options = {"which": which, "backend": backend, "view": view}
    rows = hx.gather_patches(images, plan, 0.5, -1.0, **options)
    found = hx.gather_patches(images, with_nonsense(plan), 0.5, -1.0, **options)
    assert torch.equal(found[: rows.shape[0]], rows)
    assert not found[rows.shape[0] :].any()


def test_no_gradient_comes_from_slack():
    plan, images = plan_of(), images_of(torch.float32)
    grads = []
    for each in (plan, with_nonsense(plan)):
        leaf = images.clone().requires_grad_()
        rows = hx.gather_patches(leaf, each)
        weights = torch.arange(rows.numel(), dtype=torch.float32).view_as(rows)
        grads.append(torch.autograd.grad((rows * weights).sum(), leaf)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_loss_leaves_slack_out(backend, norm_pix_loss):
    if backend == "native" and hx.ops.native.core is None:
        pytest.skip("the native core is missing")
    plan, images = plan_of(), images_of()
    rounded = with_nonsense(plan)
    n_rows = plan.predict_ids.shape[0]
    pred = torch.randn(rounded.predict_ids.shape[0], PATCH**2, generator=torch.Generator().manual_seed(3))
    results = []
    for each, values in ((plan, pred[:n_rows].clone()), (rounded, pred.clone())):
        values.requires_grad_()
        loss, patch_loss = hx.reconstruction_loss(
            images, values, each, 1 / 64, -2.0, norm_pix_loss=norm_pix_loss, backend=backend
        )
        results.append((loss, patch_loss, torch.autograd.grad(loss, values)[0]))
    (loss, patch_loss, grad), (found, found_patches, found_grad) = results
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(found_patches[:n_rows], patch_loss)
    torch.testing.assert_close(found_grad[:n_rows], grad)
    assert not found_patches[n_rows:].any()
    assert not found_grad[n_rows:].any()


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_an_auto_encoder_learns_the_same_from_a_rounded_plan(decoder):
    torch.manual_seed(0)
    size = (GRID[0] * PATCH, GRID[1] * PATCH)
    model = create_mae("vit_tiny_patch16", decoder, size, decoder_embed_dim=32, decoder_depth=2, depth=2)
    plan, images = plan_of(), images_of()
    results = []
    for each in (plan, plan.rounded_up(0.3)):
        model.zero_grad()
        output = model(images, each, 1 / 64, -2.0)
        output.loss.backward()
        results.append([output.loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_more_rows_than_ids_are_refused():
    plan = plan_of()
    cut = MaskPlan.unchecked(
        plan.keep_ids[:-1],
        plan.keep_cu_seqlens,
        plan.predict_ids,
        plan.predict_cu_seqlens,
        plan.grid_size,
        plan.patch_size,
        plan.max_keep,
        plan.max_predict,
    )
    with pytest.raises(ArgumentError, match=r"plan\.keep_cu_seqlens: must end at the number of ids, \d+, or before it"):
        hx.gather_patches(images_of(), cut)
