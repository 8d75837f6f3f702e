"""Samples to batches with their mask plans, made where images are read: on the host, whose counts are exact."""

from __future__ import annotations

import torch
from torch.utils.data import default_collate

from ..ops.mask_plan import plan_masks
from ..ops.plan import MaskPlan
from .config import PretrainConfig

PICTURE_EPOCH = 2**31 - 1  # the picture's mask: always the same, and none that training draws


class PlannedBatch:
    """Collates samples of :class:`.RadiographDataset`; ``inside`` and ``valid`` make way for the ``plan``.

    Args:
        config: how patches are masked.
        predict: share of the masked patches that are predicted.
    """

    def __init__(self, config: PretrainConfig, predict: float) -> None:
        self.config, self.predict = config, predict

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict:
        """A batch: what the samples hold, stacked, the ``plan``, and ``predicted``, its number of predicted patches."""
        batch = default_collate(samples)
        plan = planned(self.config, batch, self.predict)
        del batch["inside"], batch["valid"], batch["draw"]
        return {**batch, "plan": plan, "predicted": plan.predict_ids.shape[0]}


def planned(config: PretrainConfig, batch: dict, predict: float, picture: bool = False) -> MaskPlan:
    """The plan of a batch with ``inside``, ``valid``, ``draw`` and ``pixels``; the picture's mask is its own."""
    return plan_masks(
        batch["inside"],
        batch["valid"],
        ratio_inside=config.ratio_inside,
        ratio_outside=config.ratio_outside,
        strategy=config.strategy,
        predict=predict,
        seed=config.seed,
        epoch=PICTURE_EPOCH if picture else 0,
        index=batch["draw"],
        patch_size=batch["pixels"].shape[-1] // batch["inside"].shape[-1],
    )
