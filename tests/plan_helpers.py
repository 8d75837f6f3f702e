"""Mask plans from explicit patch ids, so that model tests say exactly which patches are kept and predicted."""

from __future__ import annotations

import torch
from torch import Tensor

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


def single_plan(plan: MaskPlan, image: int) -> MaskPlan:
    """The plan of one image of a batch."""
    keep = plan.keep_ids.split(plan.keep_cu_seqlens.diff().tolist())[image].tolist()
    predict = plan.predict_ids.split(plan.predict_cu_seqlens.diff().tolist())[image].tolist()
    return make_plan([keep], [predict], plan.grid_size, plan.patch_size)


def _pack(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    flat = torch.tensor([i for image in ids for i in image], dtype=torch.int32)
    return flat, torch.tensor([0, *map(len, ids)]).cumsum(0).to(torch.int32)
