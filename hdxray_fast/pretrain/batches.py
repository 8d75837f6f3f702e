"""Samples to batches with their mask plans, made where images are read: on the host, whose counts are exact."""

from __future__ import annotations

import torch
from torch.utils.data import default_collate

from ..ops.mask_plan import plan_masks
from ..ops.plan import MaskPlan
from .config import PretrainConfig
from .windows import windows

FIXED_EPOCH = 2**31 - 1  # masks of pictures and held-out radiographs: always the same, and none that training draws


class PlannedBatch:
    """Collates samples of :class:`.RadiographDataset`; ``inside`` and ``valid`` make way for the ``plan``.

    Args:
        config: how patches are masked.
        predict: share of the masked patches that are predicted.
        fixed: the masks are those that no epoch draws, as for pictures and held-out radiographs.
    """

    def __init__(self, config: PretrainConfig, predict: float, fixed: bool = False) -> None:
        self.config, self.predict, self.fixed = config, predict, fixed

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict:
        """A batch: what the samples hold, stacked, the ``plan``, and ``predicted``, its number of predicted patches."""
        batch = default_collate(samples)
        if self.config.window:
            side = self.config.window // (batch["pixels"].shape[-1] // batch["inside"].shape[-1])
            batch["valid"] = windows(batch["valid"], side, self.config.seed, batch["draw"])
        plan = planned(self.config, batch, self.predict, self.fixed)
        del batch["inside"], batch["valid"], batch["draw"]
        return {**batch, "plan": plan, "predicted": plan.predict_ids.shape[0]}


def planned(config: PretrainConfig, batch: dict, predict: float, fixed: bool = False) -> MaskPlan:
    """The plan of a batch with ``inside``, ``valid``, ``draw`` and ``pixels``; fixed masks are those of no epoch."""
    return plan_masks(
        batch["inside"],
        batch["valid"],
        ratio_inside=config.ratio_inside,
        ratio_outside=config.ratio_outside,
        strategy=config.strategy,
        predict=predict,
        seed=config.seed,
        epoch=FIXED_EPOCH if fixed else 0,
        index=batch["draw"],
        patch_size=batch["pixels"].shape[-1] // batch["inside"].shape[-1],
    )
