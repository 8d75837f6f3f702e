"""Losses of a classifier over the labels that are known, with weights per class."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MOST_WEIGHT = 100.0  # of a positive: one example in ten thousand would drown the rest


def known_labels(labels: Tensor, multiclass: bool) -> Tensor:
    """How many labels of ``labels [B, C]`` are known (of exclusive classes: how many images), as a tensor."""
    known = ~labels.isnan()
    return known.all(-1).sum() if multiclass else known.sum()


def classification_loss(
    logits: Tensor,  # [B, C]
    labels: Tensor,  # [B, C] 0 to 1, NaN where not known
    multiclass: bool = False,
    weights: Tensor | None = None,  # [C]
) -> Tensor:
    """Mean over the known labels: binary cross-entropy each, or with ``multiclass`` cross-entropy of each image.

    Args:
        logits: in any float type; the loss is float32.
        labels: may lie between 0 and 1 (mixup).
        multiclass: exactly one class holds; an image with a label that is not known is left out.
        weights: of the positives of each class, or with ``multiclass`` of the images of each class.

    Returns:
        A scalar; 0 where nothing is known, and then without gradient.
    """
    logits = logits.float()
    known = ~labels.isnan()
    target = labels.nan_to_num()
    if multiclass:
        each = -(target * logits.log_softmax(-1) * (1.0 if weights is None else weights)).sum(-1)  # [B]
        known = known.all(-1)
    else:
        each = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weights)  # [B, C]
    return torch.where(known, each, 0.0).sum() / known.sum().clamp(min=1)


def class_weights(labels: np.ndarray, multiclass: bool = False) -> np.ndarray:
    """Weights that let every class count alike, ``[C] float32``, at most ``MOST_WEIGHT``.

    Negatives by positives of each class; of exclusive classes images by (classes times images of the class), which is
    scikit-learn's "balanced". Probabilities learned so are those of a balanced world: thresholds are chosen on
    validation, but calibration suffers.
    """
    positive = np.nansum(labels, axis=0)
    if multiclass:
        weights = len(labels) / (labels.shape[1] * np.maximum(positive, 1))
    else:
        weights = (np.nansum(1 - labels, axis=0)) / np.maximum(positive, 1)
    return np.clip(weights, 1 / MOST_WEIGHT, MOST_WEIGHT).astype(np.float32)
