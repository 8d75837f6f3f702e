"""What AdamW is told: which parameters decay, and the running average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two AdamW groups: weight decay on matrices; none on biases, norms, learned tokens (as MAE) and map mixtures."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (free if parameter.ndim <= 1 or name.endswith(("_token", "wfm")) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


class AveragedWeights:
    """Exponential moving average of the trainable parameters of ``model``; each process averages the shards it holds.

    The first update copies; the one after ``n`` updates keeps ``min(decay, (1 + n) / (10 + n))`` of the average. This
    is the rule of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``: without it the average of a short run
    would be the weights of its first step.

    Args:
        model: as it is trained: after sharding, where it is sharded.
        decay: largest share of the average that one update keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def next_move(self) -> float:
        """How far the next update moves the average towards the weights, from 0 to 1."""
        return 1 - min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 1.0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of ``model`` into the average."""
        ours, theirs = self._pairs(model)
        if self.updates == 0:
            torch._foreach_copy_(ours, theirs)
        else:
            torch._foreach_lerp_(ours, theirs, self.next_move())
        self.updates += 1

    @torch.no_grad()
    def move(self, model: nn.Module, share: Tensor) -> None:
        """The same by ``share []`` of the way, where only the device knows how far; who calls it counts the update."""
        for mine, its in zip(*self._pairs(model), strict=True):
            mine.lerp_(its, share)

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        current = dict(model.named_parameters())
        return [_local(tensor) for tensor in self.tensors.values()], [_local(current[name]) for name in self.tensors]

    @contextmanager
    @torch.no_grad()
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Within, ``model`` has the averaged weights."""
        parameters = dict(model.named_parameters())
        before = {name: parameters[name].detach().clone() for name in self.tensors}
        for name, tensor in self.tensors.items():
            parameters[name].copy_(tensor)
        try:
            yield
        finally:
            for name, tensor in before.items():
                parameters[name].copy_(tensor)


def averaged_weights(model: nn.Module, decay: float) -> AveragedWeights | None:
    """Moving average of the weights of ``model`` with ``decay``, or ``None`` for 0."""
    return AveragedWeights(model, decay) if decay else None


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
