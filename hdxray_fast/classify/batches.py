"""Labelled samples to batches with all that a step needs to know on the host: made where images are read.

Plans, shares of mixup, branches that stochastic depth keeps, and how many labels are known: so nothing within a step
asks a GPU for a value. What is left to do on it is mixing pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ..data.draws import drop_path_keep, mixing_shares
from ..models.encoder import Encoder
from ..models.inputs import Looks, standardised
from .config import FinetuneConfig
from .loss import known_labels


class LabelledBatch:
    """Collates samples of :class:`.LabelledRadiographs`; ``inside``, ``valid`` and ``draw`` make way.

    Args:
        encoder: tells which patches are looked at, and how often its blocks are left out.
        config: seed and mixup.
        multiclass: exactly one class holds.
    """

    def __init__(self, encoder: Encoder, config: FinetuneConfig, multiclass: bool) -> None:
        self.looks = Looks.of(encoder)
        self.rates = [block.drop_path for block in encoder.blocks]
        self.seed, self.mixup, self.multiclass = config.seed, config.mixup, multiclass

    def __call__(self, samples: list[dict]) -> dict:
        """A batch: what the samples hold, stacked, and beside it

        - ``plan``: of the patches to look at; ``None`` for all,
        - ``known``: the number of labels that are known (of exclusive classes: of images whose label is),
        - ``drop_path_keep [depth, 2, B]`` bool, where there is stochastic depth,
        - ``share [B]`` float32 with mixup: what each image keeps of itself; labels and plan are of the mixed images,
          pixels are left to :func:`mix_pixels`.
        """
        batch = default_collate(samples)
        numbers = batch.pop("draw").tolist()
        if any(self.rates):
            batch["drop_path_keep"] = drop_path_keep(self.rates, self.seed, numbers)
        if self.mixup:
            batch["share"] = mixing_shares(self.mixup, self.seed, numbers)
            batch = mix_labels(batch)
        batch["plan"] = self.looks.plan(batch["pixels"], batch.pop("inside"), batch.pop("valid"))
        batch["known"] = int(known_labels(batch["labels"], self.multiclass))
        return batch


def mix_labels(batch: dict) -> dict:
    """Mixup (https://arxiv.org/abs/1710.09412) in pairs, of all but the pixels: first and second, third and fourth.

    A step's images stand in the order of the walk through the data, and a batch has an even number of them: so who is
    mixed with whom does not depend on how the step is split into batches. A patch that either of them shows is shown,
    and a label that is not known of one of them is not known of both.

    Args:
        batch: of :class:`.LabelledRadiographs`, with ``share [B]`` float32, what each image keeps of itself, 0 to 1.

    Returns:
        The batch with ``inside``, ``valid`` and ``labels`` of the mixed images.
    """
    own, labels = batch["share"][:, None], batch["labels"]
    return {
        **batch,
        "inside": batch["inside"] | _partners(batch["inside"]),
        "valid": batch["valid"] | _partners(batch["valid"]),
        "labels": own * labels + (1 - own) * _partners(labels),
    }


def mix_pixels(encoder: Encoder, batch: dict) -> dict:
    """The pixels of the images whose labels :func:`mix_labels` mixed.

    Both images of a pair are standardised first, so that the share is one of contrast.

    Args:
        encoder: tells how.
        batch: with ``pixels``, ``scale``, ``shift`` and ``share``.

    Returns:
        A batch whose ``pixels`` are float32 ``[B, 1, S, S]``, ``scale`` 1 and ``shift`` 0.
    """
    images, own = standardised(encoder, batch), batch["share"][:, None, None, None]
    return {
        **batch,
        "pixels": own * images + (1 - own) * _partners(images),
        "scale": torch.ones_like(batch["scale"]),
        "shift": torch.zeros_like(batch["shift"]),
    }


def _partners(values: Tensor) -> Tensor:  # [B, ...], B even
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
