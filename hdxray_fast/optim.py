"""What AdamW is told: which parameters decay, how the learning rate moves, and the running average of the weights."""

from __future__ import annotations

import math

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two AdamW groups: weight decay on matrices; none on biases, norms, learned tokens (as MAE) and map mixtures."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (free if parameter.ndim <= 1 or name.endswith(("_token", "wfm")) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def warmup_cosine(step: int, steps: int, warmup: float, floor: float = 0.01) -> float:
    """Share of the peak rate at ``step`` (0-based): linear rise over ``warmup * steps``, then a cosine to ``floor``."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def averaged_model(model: nn.Module, decay: float) -> nn.Module | None:
    """Exponential moving average of ``model`` with ``decay``, or ``None`` for 0."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
