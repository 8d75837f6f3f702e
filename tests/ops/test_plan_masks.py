"""Mask plans: exact counts, the same ids from every path, and what the random keys promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from plan_helpers import assert_same, ellipse, images_of, requests

import hdxray_fast as hx
from hdxray_fast.ops import mask_plan, native
from hdxray_fast.ops import mask_rules as masking_rules

needs_core = pytest.mark.skipif(native.core is None, reason=f"the native core is not built: {native.why_missing}")
# counter, key, words: the known answers of Random123 1.14 (kat_vectors, "philox4x32 10")
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def round_half_up(ratio: float, n: int) -> int:
    return math.floor(ratio * n + 0.5)


# --- keys -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_reference_gives_the_known_answers(counter, key, words):
    assert masking_rules.philox_ref(np.array([counter], np.uint64), key).tolist() == [list(words)]


@needs_core
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
@pytest.mark.parametrize("lane", range(9))
def test_philox_core_gives_the_known_answers_in_every_lane(vector_path, counter, key, words, lane):
    start = (counter[0] - lane) % 2**32  # the first counter word wraps round on its way to the known one
    out = native.philox(4 * (lane + 1), (start, *counter[1:]), key)
    assert out[4 * lane :].tolist() == list(words)


@needs_core
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 31, 32, 33, 6400])
def test_philox_core_equals_the_reference(vector_path, n):
    words = native.philox(n, (0, 7, 0x89ABCDEF, 0x01234567), (0xDEADBEEF, 0xFEEDF00D))
    index = 0x0123456789ABCDEF
    assert words.tolist() == masking_rules.patch_keys_ref(n, 0xFEEDF00DDEADBEEF, 7, index).tolist()


# --- the same ids from every path -------------------------------------------------------------------------------------
@needs_core
@pytest.mark.parametrize("predict", [1.0, 0.25, 0.001, 0.0])
@pytest.mark.parametrize("strategy", mask_plan.STRATEGIES)
@pytest.mark.parametrize("grid", [(80, 80), (20, 20), (1, 1), (7, 13), (1, 65), (33, 2), (3, 3)])
def test_native_equals_reference(vector_path, grid, strategy, predict):
    inside, valid = ellipse(3, *grid)
    options = {
        "strategy": strategy,
        "predict": predict,
        "seed": 2**64 - 1,
        "epoch": 2**31 - 1,
        "index": [0, 2**40 + 3, 2**63 - 1],
    }
    native = hx.plan_masks(inside, valid, backend="native", **options)
    assert_same(native, hx.plan_masks(inside, valid, backend="reference", **options))


@needs_core
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(requests())
def test_any_request_is_answered_alike_and_by_the_rules(request_):
    inside, valid, options = request_
    plan = hx.plan_masks(inside, valid, **options)
    assert_same(plan, hx.plan_masks(inside, valid, backend="reference", **options))
    for b, (kept, predicted) in enumerate(zip(images_of(plan), images_of(plan, "predict"), strict=True)):
        legal = set(np.flatnonzero(valid[b]).tolist())
        assert set(kept) <= legal
        assert set(predicted) <= legal - set(kept)
        assert kept == sorted(set(kept))
        assert predicted == sorted(set(predicted))
        assert bool(kept) == bool(legal)
        assert bool(predicted) == (options["predict"] > 0 and len(kept) < len(legal))
        if options["predict"] == 1.0:
            assert len(kept) + len(predicted) == len(legal)


# --- counts -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("strategy", ["contour", "block"])
def test_counts_are_exact_in_each_stratum(backend, strategy):
    inside, valid = ellipse(4, 80, 80)
    plan = hx.plan_masks(inside, valid, 0.95, 0.85, predict=0.25, strategy=strategy, backend=backend)
    for b, (kept, predicted) in enumerate(zip(images_of(plan), images_of(plan, "predict"), strict=True)):
        for region, ratio in ((inside[b] & valid[b], 0.95), (~inside[b] & valid[b], 0.85)):
            members = set(region.flatten().nonzero().flatten().tolist())
            masked = round_half_up(ratio, len(members))
            assert len(members & set(kept)) == len(members) - masked
            assert len(members & set(predicted)) == round_half_up(0.25, masked)
    assert plan.keep_counts.tolist() == [len(k) for k in images_of(plan)]
    assert plan.max_keep == int(plan.keep_counts.max())
    assert plan.max_predict == int(plan.predict_counts.max())


@pytest.mark.parametrize(("n", "masked"), [(1, 1), (3, 2), (5, 3), (7, 4), (2, 1)])
def test_halves_round_up(n, masked):
    valid = torch.ones(1, 1, n, dtype=torch.bool)
    plan = hx.plan_masks(~valid, valid, ratio_outside=0.5)
    assert plan.keep_ids.numel() == max(n - masked, 1)


def test_random_masks_as_many_as_contour():
    inside, valid = ellipse(5, 80, 80)
    contour, random = (hx.plan_masks(inside, valid, strategy=s, seed=1) for s in ("contour", "random"))
    assert torch.equal(contour.keep_cu_seqlens, random.keep_cu_seqlens)
    assert torch.equal(contour.predict_cu_seqlens, random.predict_cu_seqlens)
    assert not torch.equal(contour.keep_ids, random.keep_ids)


def test_rectangle_is_the_published_box():
    grid = torch.zeros(1, 20, 20, dtype=torch.bool)
    plan = hx.plan_masks(grid, ~grid, ratio_inside=1.0, ratio_outside=0.0, strategy="rectangle")
    box = torch.zeros(20, 20, dtype=torch.bool)
    box[6:16, 3:16] = True
    assert plan.predict_ids.tolist() == box.flatten().nonzero().flatten().tolist()
    assert plan.keep_ids.tolist() == (~box).flatten().nonzero().flatten().tolist()


def test_block_masks_whole_blocks_but_for_one_per_stratum():
    valid = torch.ones(1, 80, 80, dtype=torch.bool)
    plan = hx.plan_masks(~valid, valid, ratio_outside=0.85, strategy="block")
    keep = torch.zeros(6400, dtype=torch.bool)
    keep[plan.keep_ids.long()] = True
    per_block = keep.view(20, 4, 20, 4).permute(0, 2, 1, 3).reshape(400, 16).sum(1)
    assert ((per_block != 0) & (per_block != 16)).sum() <= 1


# --- corners ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("strategy", mask_plan.STRATEGIES)
def test_at_least_one_patch_is_kept_and_it_has_the_smallest_key(backend, strategy):
    inside, valid = ellipse(3, 9, 11)
    valid[1] = False
    plan = hx.plan_masks(inside, valid, 1.0, 1.0, strategy=strategy, seed=11, backend=backend)
    assert plan.keep_counts.tolist() == [1, 0, 1]
    assert plan.predict_counts.tolist() == [int(v.sum()) - 1 if v.any() else 0 for v in valid]
    if strategy != "block":
        keys = masking_rules.patch_keys_ref(99, 11, 0, 2).astype(np.int64)
        keys[~valid[2].flatten().numpy()] = 2**32
        assert plan.keep_ids[-1].item() == int(keys.argmin())


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_at_least_one_patch_is_predicted_if_any_is_to_be(backend):
    inside, valid = ellipse(2, 9, 11)
    plan = hx.plan_masks(inside, valid, predict=1e-9, backend=backend)
    assert plan.predict_counts.tolist() == [1, 1]
    everything_kept = hx.plan_masks(inside, valid, 0.0, 0.0, backend=backend)
    assert everything_kept.predict_counts.tolist() == [0, 0]
    assert everything_kept.keep_counts.tolist() == valid.flatten(1).sum(1).tolist()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_empty_batches_and_empty_images(backend):
    none = torch.zeros(0, 5, 5, dtype=torch.bool)
    plan = hx.plan_masks(none, none, backend=backend)
    assert plan.batch_size == 0
    assert plan.keep_ids.numel() == plan.max_keep == 0
    empty = torch.zeros(2, 5, 5, dtype=torch.bool)
    plan = hx.plan_masks(empty, empty, backend=backend)
    assert plan.keep_counts.tolist() == plan.predict_counts.tolist() == [0, 0]


@pytest.mark.parametrize("strategy", mask_plan.STRATEGIES)
def test_a_plan_depends_on_seed_epoch_and_index_only(strategy):
    inside, valid = ellipse(1, 20, 20)
    three = hx.plan_masks(inside.expand(3, 20, 20), valid.expand(3, 20, 20), strategy=strategy, seed=3, index=[8, 2, 5])
    alone = hx.plan_masks(inside, valid, strategy=strategy, seed=3, index=[2])
    assert images_of(three)[1] == images_of(alone)[0]
    assert images_of(three)[0] != images_of(three)[2]
    for other in ({"seed": 4}, {"epoch": 1}, {"index": [3]}, {"seed": 3 + 2**32}, {"index": [2 + 2**32]}):
        changed = hx.plan_masks(inside, valid, strategy=strategy, **{"seed": 3, "index": [2], **other})
        assert images_of(changed) != images_of(alone), other


def test_threads_do_not_change_a_plan():
    inside, valid = ellipse(9, 31, 17)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = hx.plan_masks(inside, valid)
        torch.set_num_threads(4)
        assert_same(one, hx.plan_masks(inside, valid))
    finally:
        torch.set_num_threads(before)


def test_arrays_tensors_and_single_images_are_the_same():
    inside, valid = ellipse(1, 20, 20)
    batch = hx.plan_masks(inside, valid, index=np.array([0]))
    assert_same(batch, hx.plan_masks(inside[0].numpy(), valid[0].numpy()))
    assert_same(batch, hx.plan_masks(inside[0].t().contiguous().t(), valid[0], index=torch.tensor([0])))


# --- statistics -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("strategy", ["contour", "random", "block"])
def test_every_patch_is_kept_about_as_often(strategy):
    """Chi-square over 2000 plans of a 10 x 10 grid at ratio 0.75, all in one stratum.

    Sampling k of n without replacement, the statistic sum((count - m)^2 / (m (1 - k/n))) has mean n - 1 and, nearly,
    variance 2 (n - 1): the bounds are five standard deviations. Blocks share keys, so only their means are held to it.
    """
    n, plans = 100, 2000
    valid = torch.ones(plans, 10, 10, dtype=torch.bool)
    plan = hx.plan_masks(~valid, valid, ratio_outside=0.75, strategy=strategy, seed=123)
    counts = torch.bincount(plan.keep_ids, minlength=n).double()
    if strategy == "block":
        counts = counts[:80].view(2, 4, 10).permute(0, 2, 1)[:, :8].reshape(2, 2, 4, 4).mean((2, 3)).flatten()
        assert ((counts - counts.mean()).abs() < 5 * (plans * 0.25 * 0.75) ** 0.5).all()
        return
    share = 0.25
    chi_square = ((counts - plans * share) ** 2).sum().item() / (plans * share * (1 - share))
    assert abs(chi_square - (n - 1)) < 5 * (2 * (n - 1)) ** 0.5


def test_neighbours_are_kept_independently():
    """Pairs of adjacent patches are kept together as often as drawing without replacement says (five sigma)."""
    plans, n, k = 4000, 64, 16
    valid = torch.ones(plans, 8, 8, dtype=torch.bool)
    plan = hx.plan_masks(~valid, valid, ratio_outside=0.75, seed=9)
    keep = torch.zeros(plans, n, dtype=torch.bool)
    keep[torch.arange(plans).repeat_interleave(k), plan.keep_ids.long()] = True
    together = (keep[:, :-1] & keep[:, 1:]).double().mean().item()
    expected = k / n * (k - 1) / (n - 1)
    assert abs(together - expected) < 5 * (expected / (plans * (n - 1))) ** 0.5


# --- bad input --------------------------------------------------------------------------------------------------------
GRID = np.ones((1, 4, 4), bool)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"inside": GRID.astype(np.uint8)}, hx.ArgumentError, "inside: got dtype uint8"),
        ({"inside": torch.ones(1, 4, 4)}, hx.ArgumentError, "inside: got dtype float32"),
        ({"inside": GRID.tolist()}, hx.ArgumentTypeError, "inside: got list"),
        ({"valid": np.ones((1, 4, 5), bool)}, hx.ArgumentError, "valid: got shape"),
        ({"valid": np.ones(4, bool)}, hx.ArgumentError, "valid: got shape"),
        ({"inside": np.ones((1, 0, 4), bool)}, hx.ArgumentError, "inside: got shape"),
        ({"ratio_inside": float("nan")}, hx.ArgumentError, "ratio_inside: got nan"),
        ({"ratio_outside": 1.01}, hx.ArgumentError, "ratio_outside: got 1.01"),
        ({"predict": -0.1}, hx.ArgumentError, "predict: got -0.1"),
        ({"ratio_inside": "0.5"}, hx.ArgumentTypeError, "ratio_inside: got str"),
        ({"predict": True}, hx.ArgumentTypeError, "predict: got bool"),
        ({"strategy": "chest"}, hx.ArgumentError, "strategy: got 'chest'"),
        ({"seed": -1}, hx.ArgumentError, "seed: got -1"),
        ({"seed": 2**64}, hx.ArgumentError, "seed: got"),
        ({"seed": 1.5}, hx.ArgumentTypeError, "seed: got float"),
        ({"epoch": 2**31}, hx.ArgumentError, "epoch: got"),
        ({"epoch": -1}, hx.ArgumentError, "epoch: got -1"),
        ({"index": [-1]}, hx.ArgumentError, "index: got -1"),
        ({"index": [2**63]}, hx.ArgumentError, "index: got"),
        ({"index": np.array([2**63], np.uint64)}, hx.ArgumentError, "index: got"),
        ({"index": torch.tensor([-5])}, hx.ArgumentError, "index: got -5"),
        ({"index": [0, 1]}, hx.ArgumentError, "index: got shape"),
        ({"index": torch.tensor([0.0])}, hx.ArgumentError, "index: got dtype float32"),
        ({"index": np.array([0.0])}, hx.ArgumentError, "index: got dtype float64"),
        ({"index": 3}, hx.ArgumentTypeError, "index: got int"),
        ({"patch_size": 0}, hx.ArgumentError, "patch_size: got 0"),
        ({"backend": "cuda"}, hx.ArgumentError, "backend: got 'cuda'"),
        ({"max_keep": -1}, hx.ArgumentError, "max_keep: got -1"),
        ({"max_keep": True}, hx.ArgumentTypeError, "max_keep: got bool"),
        ({"max_predict": 2.0}, hx.ArgumentTypeError, "max_predict: got float"),
        ({"max_predict": 2**31}, hx.ArgumentError, "max_predict: got"),
        ({"valid": torch.ones(1, 4, 4, dtype=torch.bool, device="meta")}, hx.ArgumentError, "valid: is on meta"),
    ],
)
def test_bad_arguments_are_named(arguments, error, says):
    with pytest.raises(error, match=says) as raised:
        hx.plan_masks(**{"inside": GRID, "valid": GRID, **arguments})
    assert isinstance(raised.value, hx.HDXrayError)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")
def test_a_compiler_is_told_why_it_cannot_hold_a_plan():
    """The number of patches depends on values; fullgraph=True says so, and otherwise the plan is what it was."""

    def count(grid):
        return hx.plan_masks(grid, grid).keep_ids.shape[0]

    grid = torch.ones(2, 4, 4, dtype=torch.bool)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="make the plan before the compiled model, and pass it"):
        torch.compile(count, backend="eager", fullgraph=True)(grid)
    assert torch.compile(count, backend="eager")(grid) == count(grid)
