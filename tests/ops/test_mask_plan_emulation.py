"""The GPU's mask plan, played through on the CPU thread by thread: id for id what the CPU path gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_plan_emulation_helpers import GUARD, UNTOUCHED, choice_of, truncated
from plan_helpers import ellipse, requests

import hdxray_fast as hx
from hdxray_fast.ops import mask_plan, native
from hdxray_fast.ops.plan import fetch_packed

core = native.core
pytestmark = pytest.mark.skipif(core is None, reason=f"the native core is not built: {native.why_missing}")
FORWARDS, BACKWARDS, INTERLEAVED = range(3)


def emulate(inside, valid, index, choice, bounds=None, order=FORWARDS, remember=False, room=None, offsets=None):
    """keep_ids, keep_cu, predict_ids, predict_cu as the kernels leave them, slack included; guards are checked."""
    batch, grid_h, grid_w = inside.shape
    bounds = bounds or (grid_h * grid_w, grid_h * grid_w)
    room = room or tuple(batch * bound for bound in bounds)
    cu = torch.full((2, batch + 1), UNTOUCHED, dtype=torch.int32)
    lists = [torch.full((n + 2 * GUARD,), UNTOUCHED, dtype=torch.int32) for n in room]
    ids = [whole[GUARD : GUARD + n] for whole, n in zip(lists, room, strict=True)]
    grids = (inside.data_ptr(), valid.data_ptr(), index.data_ptr(), batch, grid_h, grid_w)
    call = grids, choice, bounds, cu[0].data_ptr(), cu[1].data_ptr()
    core._emulate_mask_plan_counts(*call, order)
    if offsets is not None:
        cu[:] = torch.tensor(offsets)
    core._emulate_mask_plan_ids(*call, (ids[0].data_ptr(), ids[1].data_ptr(), *room), order, remember)
    for whole in lists:
        assert (whole[:GUARD] == UNTOUCHED).all()
        assert (whole[-GUARD:] == UNTOUCHED).all()
    return ids[0], cu[0], ids[1], cu[1]


def trimmed(ids: torch.Tensor, cu: torch.Tensor) -> torch.Tensor:
    """The ids without the slack, which must be zero."""
    assert (ids[cu[-1] :] == 0).all()
    return ids[: cu[-1]]


def assert_equal_to_cpu(inside, valid, index, choice, **options) -> None:
    want = native.mask_plan(inside, valid, index, choice)[0]
    keep_ids, keep_cu, predict_ids, predict_cu = emulate(inside, valid, index, choice, **options)
    got = trimmed(keep_ids, keep_cu), keep_cu, trimmed(predict_ids, predict_cu), predict_cu
    for name, a, b in zip(("keep_ids", "keep_cu", "predict_ids", "predict_cu"), got, want, strict=True):
        assert torch.equal(a, b), (name, choice, options)


# --- equal to the CPU path --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("strategy", mask_plan.STRATEGIES)
def test_every_small_grid(strategy):
    """All grids up to 9 x 9, with ratios at and between the ends, in three orders of threads."""
    shares = [0.0, 0.5, 0.85, 1.0]
    turn = 0
    for gh in range(1, 10):
        for gw in range(1, 10):
            rng = np.random.default_rng(100 * gh + gw)
            valid = torch.from_numpy(rng.random((4, gh, gw)) < [[[1.0]], [[0.7]], [[0.0]], [[0.2]]])
            inside = torch.from_numpy(rng.random((4, gh, gw)) < 0.5)
            index = torch.from_numpy(rng.integers(0, 2**63 - 1, 4))
            for ratio_inside in shares:
                for ratio_outside in shares:
                    predict = (1.0, 0.25, 1e-9, 0.0)[turn % 4]
                    choice = choice_of(strategy, ratio_inside, ratio_outside, predict, turn, gw)
                    order, remember = turn % 3, bool(turn // 3 % 2)
                    assert_equal_to_cpu(inside, valid, index, choice, order=order, remember=remember)
                    turn += 1


@pytest.mark.parametrize("remember", [False, True])
@pytest.mark.parametrize("strategy", mask_plan.STRATEGIES)
@pytest.mark.parametrize(
    "grid", [(1, 1), (1, 65), (63, 1), (7, 13), (20, 20), (33, 62), (64, 32), (80, 80), (160, 160)]
)
def test_grids_of_many_sizes(grid, strategy, remember):
    """Below, at and above a tile (512 threads of four patches), one and two bytes of ids."""
    inside, valid = ellipse(2, *grid)
    index = torch.tensor([2**63 - 1, 2**40 + 3])
    for ratios in ((0.95, 0.85, 0.25), (0.75, 0.0, 1.0), (1.0, 1.0, 0.5)):
        choice = choice_of(strategy, *ratios, 2**64 - 1, 2**31 - 1)
        assert_equal_to_cpu(inside, valid, index, choice, remember=remember, order=INTERLEAVED)


def test_ids_of_three_bytes():
    inside, valid = ellipse(1, 300, 301)
    for strategy in mask_plan.STRATEGIES:
        assert_equal_to_cpu(inside, valid, torch.tensor([5]), choice_of(strategy, 0.95, 0.85, 0.3, 1, 2))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(requests(), st.sampled_from([FORWARDS, BACKWARDS, INTERLEAVED]), st.booleans(), st.data())
def test_any_request_is_answered_as_by_the_cpu(request_, order, remember, data):
    inside, valid, options = request_
    choice = choice_of(**options)
    index = torch.tensor(data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(inside), max_size=len(inside))))
    inside, valid, index = torch.from_numpy(inside), torch.from_numpy(valid), index.long()
    assert_equal_to_cpu(inside, valid, index, choice, order=order, remember=remember)
    bounds = tuple(data.draw(st.tuples(st.integers(0, 150), st.integers(0, 150))))
    want = truncated(native.mask_plan(inside, valid, index, choice)[0], bounds)
    keep_ids, keep_cu, predict_ids, predict_cu = emulate(
        inside, valid, index, choice, bounds=bounds, order=order, remember=remember
    )
    got = trimmed(keep_ids, keep_cu), keep_cu, trimmed(predict_ids, predict_cu), predict_cu
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_grids_that_are_not_aligned():
    """Rows of a larger tensor begin at any byte; the GPU reads four at once only where it may."""
    inside, valid = ellipse(7, 9, 7)
    for first in range(4):
        assert_equal_to_cpu(inside[first:], valid[first:], torch.arange(7 - first), choice_of("contour"))


def test_bytes_other_than_one_are_true():
    inside, valid = ellipse(2, 9, 8)
    as_bytes = [grid.to(torch.uint8) * 2 for grid in (inside, valid)]
    want = emulate(inside, valid, torch.arange(2), choice_of("contour"))
    got = emulate(*as_bytes, torch.arange(2), choice_of("contour"))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_many_images_are_packed_by_one_block():
    """More images than the block that sums the counts has threads; some are empty."""
    rng = np.random.default_rng(3)
    valid = torch.from_numpy(rng.random((1300, 2, 3)) < rng.random((1300, 1, 1)))
    inside = torch.from_numpy(rng.random((1300, 2, 3)) < 0.5)
    for order in (FORWARDS, BACKWARDS, INTERLEAVED):
        assert_equal_to_cpu(inside, valid, torch.arange(1300), choice_of("contour", 0.5, 0.5), order=order)


def test_an_empty_batch_has_one_offset_and_no_room():
    none = torch.zeros(0, 5, 5, dtype=torch.bool)
    index = torch.zeros(0, dtype=torch.int64)
    _, keep_cu, _, predict_cu = emulate(none, none, index, choice_of("contour"))
    assert keep_cu.tolist() == predict_cu.tolist() == [0]
    with pytest.raises(ValueError, match="no images"):
        emulate(none, none, index, choice_of("contour"), room=(3, 2))


# --- bounds -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bounds", [(0, 0), (1, 1), (7, 100), (100, 7), (2**31 - 1, 2**31 - 1)])
def test_bounds_cut_the_highest_ids_as_the_cpu_core_does(bounds):
    inside, valid = ellipse(3, 12, 13)
    valid[1] = False
    index, choice = torch.arange(3), choice_of("contour", 0.5, 0.5, 0.5)
    room = (400, 300)
    got = emulate(inside, valid, index, choice, bounds=bounds, room=room)
    want = truncated(native.mask_plan(inside, valid, index, choice)[0], bounds)
    assert all(
        torch.equal(a, b) for a, b in zip((trimmed(*got[:2]), got[1], trimmed(*got[2:]), got[3]), want, strict=True)
    )
    cu = torch.empty(2, 4, dtype=torch.int32)
    ids = [torch.full((n,), UNTOUCHED, dtype=torch.int32) for n in room]
    grids = (inside.data_ptr(), valid.data_ptr(), index.data_ptr(), 3, 12, 13)
    core.mask_plan_counts(grids, choice, bounds, cu[0].data_ptr(), cu[1].data_ptr(), -1, 0)
    pointers = (ids[0].data_ptr(), ids[1].data_ptr(), *room)
    core.mask_plan_ids(grids, choice, bounds, cu[0].data_ptr(), cu[1].data_ptr(), pointers, 1, -1, 0)
    assert all(torch.equal(a, b) for a, b in zip((ids[0], cu[0], ids[1], cu[1]), got, strict=True))


@pytest.mark.parametrize("room", [(0, 0), (1, 0), (0, 5), (10, 11), (75, 2)])
def test_nothing_is_written_past_too_little_room(room):
    """The kernels cannot look at the counts first; `emulate` checks what surrounds the lists."""
    inside, valid = ellipse(3, 12, 13)
    index, choice = torch.arange(3), choice_of("contour", 0.5, 0.5, 0.5)
    want = native.mask_plan(inside, valid, index, choice)[0]
    keep_ids, keep_cu, predict_ids, predict_cu = emulate(inside, valid, index, choice, room=room)
    assert torch.equal(keep_cu, want[1])
    assert torch.equal(predict_cu, want[3])
    assert torch.equal(keep_ids, want[0][: room[0]])
    assert torch.equal(predict_ids, want[2][: room[1]])


@pytest.mark.parametrize("room", [(0, 0), (1, 5), (75, 2), (468, 468)], ids=str)
@pytest.mark.parametrize("offsets", [[0, 2**31 - 1, -5, 7], [9, 3, 1, 0], [-(2**31)] * 4, [2**31 - 1] * 4], ids=str)
def test_nothing_is_written_outside_whatever_the_offsets_hold(room, offsets):
    inside, valid = ellipse(3, 12, 13)
    emulate(inside, valid, torch.arange(3), choice_of("contour", 0.5, 0.5, 0.5), room=room, offsets=offsets)


def test_the_cpu_path_refuses_too_little_room():
    inside, valid = ellipse(1, 12, 13)
    index = torch.zeros(1, dtype=torch.int64)
    grids = (inside.data_ptr(), valid.data_ptr(), index.data_ptr(), 1, 12, 13)
    cu = torch.empty(2, 2, dtype=torch.int32)
    ids = torch.full((156,), UNTOUCHED, dtype=torch.int32)
    core.mask_plan_counts(grids, choice_of("random"), (156, 156), cu[0].data_ptr(), cu[1].data_ptr(), -1, 0)
    n = int(cu[0, -1])
    for room in ((n - 1, 156), (n, 3), (-1, 156)):
        with pytest.raises(ValueError, match="no room"):
            core.mask_plan_ids(
                grids, choice_of("random"), (156, 156), cu[0].data_ptr(), cu[1].data_ptr(),
                (ids.data_ptr(), ids.data_ptr(), *room), 1, -1, 0,
            )  # fmt: skip
    assert (ids == UNTOUCHED).all()


# --- the calls around the kernels -------------------------------------------------------------------------------------
class EmulatedCore:
    """The core, with device 0 emulated in the CPU's memory."""

    def __getattr__(self, name: str):
        return getattr(core, name)

    def mask_plan_counts(self, *call):
        *arguments, device, _ = call
        assert device == 0
        core._emulate_mask_plan_counts(*arguments, FORWARDS)

    def mask_plan_ids(self, *call):
        *arguments, _, device, _ = call
        assert device == 0
        core._emulate_mask_plan_ids(*arguments, FORWARDS, True)


@pytest.fixture
def emulated_gpu(monkeypatch):
    monkeypatch.setattr(native, "core", EmulatedCore())
    monkeypatch.setattr(native, "_place", lambda device: (0, 0))


@pytest.mark.parametrize("strategy", mask_plan.STRATEGIES)
@pytest.mark.parametrize(("keep", "predict"), [(None, None), (99, None), (None, 156), (40, 200), (2**31 - 1, 150)])
def test_plans_have_the_room_their_bounds_say(emulated_gpu, strategy, keep, predict):
    inside, valid = ellipse(3, 12, 13)
    valid[1] = False
    options = {"strategy": strategy, "predict": 0.8, "index": [3, 5, 2**50]}
    want = hx.plan_masks(inside, valid, backend="reference", **options)
    plan = hx.plan_masks(inside, valid, **options, max_keep=keep, max_predict=predict)
    for which, bound in (("keep", keep), ("predict", predict)):
        ids, cu = getattr(plan, f"{which}_ids"), getattr(plan, f"{which}_cu_seqlens")
        want_ids, want_cu = getattr(want, f"{which}_ids"), getattr(want, f"{which}_cu_seqlens")
        longest = getattr(want, f"max_{which}") if bound is None else min(bound, 156)
        assert getattr(plan, f"max_{which}") == longest
        assert ids.numel() == (want_ids.numel() if bound is None else 3 * longest)
        assert torch.equal(trimmed(ids, cu), want_ids)
        assert torch.equal(cu, want_cu)
        assert torch.equal(getattr(plan, f"{which}_counts"), getattr(want, f"{which}_counts"))
        fetched = fetch_packed(ids, cu)  # what MaskPlan.to("cpu") does to each list of a plan on a GPU
        assert torch.equal(fetched[0], want_ids)
        assert fetched[2] == getattr(want, f"max_{which}")


def test_bounds_cut_unless_checks_are_on(emulated_gpu):
    grids = ellipse(3, 12, 13)
    plan = hx.plan_masks(*grids, max_keep=2, max_predict=5)
    assert plan.keep_counts.tolist() == [2, 2, 2]
    assert plan.predict_counts.tolist() == [5, 5, 5]
    with hx.debug_checks():
        with pytest.raises(hx.ArgumentError, match=r"max_keep: got 2, but an image of this batch has \d+ patches"):
            hx.plan_masks(*grids, max_keep=2)
        with pytest.raises(hx.ArgumentError, match="max_predict: got 5"):
            hx.plan_masks(*grids, max_predict=5)
        plan = hx.plan_masks(*grids, max_keep=60, max_predict=156)
    assert plan.keep_ids.numel() == 180
    assert torch.equal(plan.keep_counts, hx.plan_masks(*grids, backend="reference").keep_counts)


def test_plan_all_with_a_bound(emulated_gpu):
    _, valid = ellipse(3, 7, 20)
    valid[1] = False
    plan = hx.plan_all(valid, max_keep=140)
    assert (plan.keep_ids.numel(), plan.predict_ids.numel(), plan.max_keep, plan.max_predict) == (420, 0, 140, 0)
    rows = [v.flatten().nonzero().flatten() for v in valid]
    assert torch.equal(trimmed(plan.keep_ids, plan.keep_cu_seqlens), torch.cat(rows).int())
    assert hx.plan_all(valid).keep_ids.numel() == int(valid.sum())


def test_empty_batches_with_bounds(emulated_gpu):
    none = torch.zeros(0, 5, 5, dtype=torch.bool)
    plan = hx.plan_masks(none, none, max_keep=7, max_predict=3)
    assert (plan.batch_size, plan.keep_ids.numel(), plan.max_keep, plan.max_predict) == (0, 0, 7, 3)
