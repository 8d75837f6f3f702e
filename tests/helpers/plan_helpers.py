"""Mask plans from explicit patch ids, so that model tests say exactly which patches are kept and predicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import hdxray_fast as hx
from hdxray_fast.ops import mask_plan
from hdxray_fast.ops.plan import MaskPlan


def make_plan(
    keep: list[list[int]], predict: list[list[int]], grid_size: tuple[int, int], patch_size: int = 16
) -> MaskPlan:
    """A plan that keeps and predicts the given ids, one list per image."""
    keep_ids, keep_cu_seqlens = _pack(keep)
    predict_ids, predict_cu_seqlens = _pack(predict)
    return MaskPlan(
        keep_ids=keep_ids,
        keep_cu_seqlens=keep_cu_seqlens,
        predict_ids=predict_ids,
        predict_cu_seqlens=predict_cu_seqlens,
        grid_size=grid_size,
        patch_size=patch_size,
        max_keep=max(map(len, keep), default=0),
        max_predict=max(map(len, predict), default=0),
    )


def ragged_plan(grid_size: tuple[int, int], kept: list[int], predicted: list[int], patch_size: int = 16) -> MaskPlan:
    """A random plan with the given numbers of kept and predicted patches per image."""
    keep, predict = [], []
    for num_keep, num_predict in zip(kept, predicted, strict=True):
        ids = torch.randperm(grid_size[0] * grid_size[1]).tolist()
        keep.append(sorted(ids[:num_keep]))
        predict.append(sorted(ids[num_keep : num_keep + num_predict]))
    return make_plan(keep, predict, grid_size, patch_size)


def with_slack(plan: MaskPlan, keep: int, predict: int = 0, fill: int = 0) -> MaskPlan:
    """The same plan with so many ids behind the last image's, each `fill`, which nothing may look at."""

    def longer(ids: Tensor, more: int) -> Tensor:
        return torch.cat([ids, torch.full((more,), fill, dtype=torch.int32, device=ids.device)])

    return replace(
        plan,
        keep_ids=longer(plan.keep_ids, keep),
        predict_ids=longer(plan.predict_ids, predict),
        max_keep=plan.max_keep + keep,
        max_predict=plan.max_predict + predict,
    )


def single_plan(plan: MaskPlan, image: int) -> MaskPlan:
    """The plan of one image of a batch."""
    keep = plan.keep_ids.split(plan.keep_cu_seqlens.diff().tolist())[image].tolist()
    predict = plan.predict_ids.split(plan.predict_cu_seqlens.diff().tolist())[image].tolist()
    return make_plan([keep], [predict], plan.grid_size, plan.patch_size)


def _pack(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    flat = torch.tensor([i for image in ids for i in image], dtype=torch.int32)
    return flat, torch.tensor([0, *map(len, ids)]).cumsum(0).to(torch.int32)


TENSORS = ("keep_ids", "keep_cu_seqlens", "predict_ids", "predict_cu_seqlens")


def ellipse(batch: int, gh: int, gw: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inside and valid grids of odd shapes: an ellipse that differs from image to image, and a margin of padding."""
    y, x = np.mgrid[:gh, :gw]
    inside = [((y - gh / 2) / (0.4 * gh + 1)) ** 2 + ((x - gw / 2) / (0.2 * gw + b)) ** 2 < 1 for b in range(batch)]
    valid = np.ones((batch, gh, gw), bool)
    valid[:, :, : gw // 10] = False
    return torch.from_numpy(np.stack(inside)), torch.from_numpy(valid)


def images_of(plan: hx.MaskPlan, which: str = "keep") -> list[list[int]]:
    ids, cu = getattr(plan, f"{which}_ids"), getattr(plan, f"{which}_cu_seqlens")
    return [ids[a:b].tolist() for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)]


def assert_same(a: hx.MaskPlan, b: hx.MaskPlan) -> None:
    for name in TENSORS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.grid_size, a.patch_size, a.max_keep, a.max_predict) == (
        b.grid_size,
        b.patch_size,
        b.max_keep,
        b.max_predict,
    )


@st.composite
def requests(draw):
    gh, gw, batch = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(0, 4))
    cells = st.lists(st.booleans(), min_size=batch * gh * gw, max_size=batch * gh * gw)
    sparse = draw(st.sampled_from([cells, st.just([True] * (batch * gh * gw)), st.just([False] * (batch * gh * gw))]))
    inside, valid = (np.array(draw(c), bool).reshape(batch, gh, gw) for c in (cells, sparse))
    share = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.85, 0.95, 1.0]), st.floats(0, 1))
    options = {
        "ratio_inside": draw(share),
        "ratio_outside": draw(share),
        "predict": draw(share),
        "strategy": draw(st.sampled_from(mask_plan.STRATEGIES)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "epoch": draw(st.integers(0, 2**31 - 1)),
    }
    return inside, valid, options
