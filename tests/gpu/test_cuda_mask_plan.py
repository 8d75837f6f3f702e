"""Mask plans made on a GPU: id for id the CPU's, without waiting where bounds are given, never outside the buffers."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from mask_plan_emulation_helpers import GUARD, UNTOUCHED, choice_of, truncated
from plan_helpers import TENSORS, assert_same, ellipse

import hdxray_fast as hx
from hdxray_fast.ops import mask_plan, native

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
DEVICE = "cuda"
GRIDS = [(80, 80), (20, 20), (1, 1), (7, 13), (1, 65), (63, 2), (64, 32), (33, 62), (160, 160), (300, 301)]


@pytest.fixture(autouse=True)
def _errors_show_in_the_test_that_makes_them():
    yield
    torch.cuda.synchronize()


@contextmanager
def no_waiting():
    """Any wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(*grids: torch.Tensor) -> list[torch.Tensor]:
    return [grid.to(DEVICE) for grid in grids]


def poison(count: int) -> None:
    """Leaves memory behind that is not zero, for the allocator to give out again."""
    torch.full((count,), -1, dtype=torch.int32, device=DEVICE)


def assert_slack_is_zero(plan: hx.MaskPlan) -> None:
    for which in ("keep", "predict"):
        ids, cu = getattr(plan, f"{which}_ids"), getattr(plan, f"{which}_cu_seqlens")
        assert ids.shape[0] == plan.batch_size * getattr(plan, f"max_{which}")
        assert not ids[int(cu[-1]) :].any()


# --- the CPU's ids ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("strategy", mask_plan.STRATEGIES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_ids_equal_the_cpu_path(grid, strategy):
    inside, valid = ellipse(3, *grid)
    valid[1] = False
    there = on_gpu(inside, valid)
    index = [0, 2**40 + 3, 2**63 - 1]
    for ratios in ((0.95, 0.85), (0.5, 0.0), (1.0, 1.0)):
        for predict in (1.0, 0.25, 1e-9, 0.0):
            options = {"strategy": strategy, "predict": predict, "seed": 2**64 - 1, "epoch": 2**31 - 1, "index": index}
            expected = hx.plan_masks(inside, valid, *ratios, **options)
            exact = hx.plan_masks(*there, *ratios, **options)
            assert exact.device.type == "cuda"
            for name in TENSORS:
                assert torch.equal(getattr(exact, name).cpu(), getattr(expected, name)), (name, ratios, predict)
            assert (exact.max_keep, exact.max_predict) == (expected.max_keep, expected.max_predict)
            bounds = hx.plan_bounds(grid, *ratios, predict)
            poison(3 * sum(bounds))
            bounded = hx.plan_masks(*there, *ratios, **options, max_keep=bounds[0], max_predict=bounds[1])
            assert_slack_is_zero(bounded)
            assert torch.equal(bounded.keep_counts.cpu(), expected.keep_counts)
            assert_same(bounded.to("cpu"), expected)


@pytest.mark.sanitize
@pytest.mark.parametrize("strategy", mask_plan.STRATEGIES)
def test_many_random_requests_equal_the_cpu_path(strategy):
    """Ratios at the ends too: which patch is the one that must be kept, or predicted, is found by other passes."""
    rng = np.random.default_rng(7)
    for _ in range(12):
        gh, gw, batch = rng.integers(1, 14, 3)
        valid = torch.from_numpy(rng.random((batch, gh, gw)) < rng.random((batch, 1, 1)) * 1.3)
        inside = torch.from_numpy(rng.random((batch, gh, gw)) < 0.5)
        ratios = [float(rng.choice([0.0, 1.0, rng.random()])) for _ in range(2)]
        options = {
            "strategy": strategy,
            "predict": float(rng.choice([0.0, 1e-9, 1.0, rng.random()])),
            "seed": int(rng.integers(2**63)),
            "epoch": int(rng.integers(2**31)),
            "index": rng.integers(0, 2**63 - 1, batch),
        }
        expected = hx.plan_masks(inside, valid, *ratios, **options)
        assert_same(hx.plan_masks(*on_gpu(inside, valid), *ratios, **options).to("cpu"), expected)


def test_the_gpu_does_the_work_where_the_core_can():
    inside, valid = on_gpu(*ellipse(2, 9, 9))
    assert native.resolve_backend("auto", inside.device) == "native"
    assert_same(hx.plan_masks(inside, valid).to("cpu"), hx.plan_masks(inside, valid, backend="reference").to("cpu"))
    assert hx.plan_masks(inside, valid, backend="reference").device == inside.device


def test_batches_of_any_size():
    rng = np.random.default_rng(3)
    valid = torch.from_numpy(rng.random((1300, 2, 3)) < rng.random((1300, 1, 1)))
    inside = torch.from_numpy(rng.random((1300, 2, 3)) < 0.5)
    for batch in (0, 1, 511, 512, 513, 1300):
        some = inside[:batch], valid[:batch]
        expected = hx.plan_masks(*some, 0.5, 0.5)
        assert_same(hx.plan_masks(*on_gpu(*some), 0.5, 0.5).to("cpu"), expected)
        bounded = hx.plan_masks(*on_gpu(*some), 0.5, 0.5, max_keep=6, max_predict=6)
        assert_slack_is_zero(bounded)
        assert_same(bounded.to("cpu"), expected)


def test_grids_at_any_address():
    inside, valid = ellipse(7, 9, 7)
    there = on_gpu(inside, valid)
    for first in range(5):
        got = hx.plan_masks(there[0][first:], there[1][first:])
        assert_same(got.to("cpu"), hx.plan_masks(inside[first:], valid[first:]))
    strided = there[0].flip(2).flip(2).transpose(1, 2).contiguous().transpose(1, 2)
    assert_same(hx.plan_masks(strided, there[1]).to("cpu"), hx.plan_masks(inside, valid))


def test_plan_all_keeps_every_valid_patch():
    _, valid = ellipse(3, 7, 20)
    valid[1] = False
    expected = hx.plan_all(valid, patch_size=8)
    assert_same(hx.plan_all(valid.to(DEVICE), patch_size=8).to("cpu"), expected)
    bounded = hx.plan_all(valid.to(DEVICE), patch_size=8, max_keep=140)
    assert (bounded.keep_ids.shape[0], bounded.max_keep, bounded.max_predict) == (3 * 140, 140, 0)
    assert_same(bounded.to("cpu"), expected)


# --- without waiting --------------------------------------------------------------------------------------------------
def test_bounds_make_waiting_needless():
    inside, valid = ellipse(4, 40, 40)
    there = on_gpu(inside, valid)
    as_tensor = torch.tensor([5, 6, 7, 8])
    indices = [None, [5, 6, 7, 8], as_tensor, as_tensor.int(), as_tensor.pin_memory(), as_tensor.to(DEVICE)]
    bounds = dict(zip(("max_keep", "max_predict"), hx.plan_bounds((40, 40)), strict=True))
    with no_waiting():
        plans = [hx.plan_masks(*there, index=index, **bounds) for index in indices]
        counts = hx.plan_all(there[1], max_keep=1600).keep_counts
        with pytest.raises(RuntimeError, match="synchron"):  # the guard itself works
            hx.plan_masks(*there)
    assert_same(plans[0].to("cpu"), hx.plan_masks(inside, valid))
    for plan in plans[1:]:
        assert_same(plan.to("cpu"), hx.plan_masks(inside, valid, index=as_tensor))
    assert torch.equal(counts.cpu(), valid.flatten(1).sum(1).int())


def test_a_pinned_index_may_be_written_over_at_once():
    inside, valid = ellipse(2, 20, 20)
    there, index = on_gpu(inside, valid), torch.tensor([3, 4]).pin_memory()
    torch.cuda._sleep(20_000_000)  # the copy is not made before this is over
    plan = hx.plan_masks(*there, index=index, max_keep=400, max_predict=400)
    index.fill_(9)
    assert_same(plan.to("cpu"), hx.plan_masks(inside, valid, index=[3, 4]))


def test_plans_are_made_in_the_current_stream():
    inside, valid = ellipse(2, 40, 40)
    expected = hx.plan_masks(inside, valid)
    source, stream = on_gpu(inside, valid), torch.cuda.Stream()
    for bounds in ({}, {"max_keep": 1600, "max_predict": 1600}):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            late = [torch.zeros_like(grid) for grid in source]
            torch.cuda._sleep(20_000_000)
            for grid, values in zip(late, source, strict=True):
                grid.copy_(values)
            plan = hx.plan_masks(*late, **bounds).to("cpu")
        assert_same(plan, expected)


def test_plans_in_a_graph():
    inside, valid = ellipse(2, 40, 40)
    static = on_gpu(inside, valid)
    bounds = {"max_keep": 1600, "max_predict": 1600}
    hx.plan_masks(*static, **bounds)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = hx.plan_masks(*static, **bounds)
    static[0].logical_not_()
    graph.replay()
    assert_same(plan.to("cpu"), hx.plan_masks(~inside, valid))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_current():
    inside, valid = ellipse(2, 20, 20)
    plan = hx.plan_masks(inside.to("cuda:1"), valid.to("cuda:1"), max_keep=400, max_predict=400)
    assert plan.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert_same(plan.to("cpu"), hx.plan_masks(inside, valid))


# --- bounds that do not suffice, and arguments that are wrong ---------------------------------------------------------
@pytest.mark.sanitize
@pytest.mark.parametrize("bounds", [(0, 0), (1, 1), (3, 40), (40, 3)], ids=str)
def test_too_small_a_bound_cuts_the_highest_ids(bounds):
    inside, valid = ellipse(3, 12, 13)
    valid[1] = False
    index, choice = torch.arange(3), choice_of("contour", 0.5, 0.5, 0.5)
    want = truncated(native.mask_plan(inside, valid, index, choice)[0], bounds)
    options = {"ratio_inside": 0.5, "ratio_outside": 0.5, "predict": 0.5}
    plan = hx.plan_masks(*on_gpu(inside, valid), **options, max_keep=bounds[0], max_predict=bounds[1])
    assert_slack_is_zero(plan)
    plan = plan.to("cpu")
    for name, tensor in zip(TENSORS, want, strict=True):
        assert torch.equal(getattr(plan, name), tensor), name


@pytest.mark.parametrize(("max_keep", "max_predict", "says"), [(3, 200, "max_keep: got 3"), (200, 0, "max_predict")])
def test_debug_checks_name_a_bound_that_is_too_small(max_keep, max_predict, says):
    grids = on_gpu(*ellipse(3, 12, 13))
    with hx.debug_checks(), pytest.raises(hx.ArgumentError, match=says):
        hx.plan_masks(*grids, max_keep=max_keep, max_predict=max_predict)
    with hx.debug_checks():
        plan = hx.plan_masks(*grids, max_keep=156, max_predict=156)
    assert_slack_is_zero(plan)
    assert_same(plan.to("cpu"), hx.plan_masks(*[g.cpu() for g in grids]))


def test_debug_checks_name_a_negative_index():
    grids, index = on_gpu(*ellipse(2, 5, 5)), torch.tensor([1, -4], device=DEVICE)
    hx.plan_masks(*grids, index=index)
    with hx.debug_checks(), pytest.raises(hx.ArgumentError, match="index: got -4"):
        hx.plan_masks(*grids, index=index)


@pytest.mark.sanitize
@pytest.mark.parametrize("room", [(0, 0), (1, 5), (75, 2), (468, 468)], ids=str)
@pytest.mark.parametrize("cu", [None, [0, 2**31 - 1, -5, 7], [9, 3, 1, 0], [-(2**31)] * 4, [2**31 - 1] * 4], ids=str)
def test_nothing_is_written_outside_whatever_the_offsets_hold(room, cu):
    inside, valid = on_gpu(*ellipse(3, 12, 13))
    index, choice, most = torch.arange(3, device=DEVICE), choice_of("contour", 0.5, 0.5, 0.5), 12 * 13
    grids = (inside.data_ptr(), valid.data_ptr(), index.data_ptr(), 3, 12, 13)
    place = inside.device.index, torch.cuda.current_stream().cuda_stream
    offsets = torch.empty(2, 4, dtype=torch.int32, device=DEVICE)
    if cu is None:
        native.core.mask_plan_counts(grids, choice, (most, most), offsets[0].data_ptr(), offsets[1].data_ptr(), *place)
    else:
        offsets[:] = torch.tensor(cu, dtype=torch.int32)
    lists = [torch.full((n + 2 * GUARD,), UNTOUCHED, dtype=torch.int32, device=DEVICE) for n in room]
    pointers = [whole[GUARD:].data_ptr() if n else 0 for whole, n in zip(lists, room, strict=True)]
    native.core.mask_plan_ids(
        grids, choice, (most, most), offsets[0].data_ptr(), offsets[1].data_ptr(), (*pointers, *room), 1, *place
    )
    for whole in lists:
        assert (whole[:GUARD] == UNTOUCHED).all()
        assert (whole[-GUARD:] == UNTOUCHED).all()


def test_grids_on_two_devices_are_refused():
    inside, valid = ellipse(2, 5, 5)
    with pytest.raises(hx.ArgumentError, match="valid: is on cpu, but inside is on cuda"):
        hx.plan_masks(inside.to(DEVICE), valid)
    with pytest.raises(hx.ArgumentError, match="valid: is on cuda"):
        hx.plan_masks(inside, valid.to(DEVICE))
