"""Autocast around the operators: their inputs are cast as PyTorch casts those of its own, what is inside is not."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

_DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")


def is_on(device_type: str) -> bool:
    """Whether autocast is in force for tensors on such a device."""
    return device_type in _DEVICE_TYPES and torch.is_autocast_enabled(device_type)


def cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Float tensors of one device in the dtype of the autocast in force, if there is one; float64 stays."""
    device_type = tensors[0].device.type
    if not is_on(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def off(device_type: str) -> contextlib.AbstractContextManager:
    """A block in which products are computed in the dtype of their operands: float32 that was promised stays float32.

    The backward pass of an operator runs under the autocast of whoever calls ``backward``, so it needs this too.
    """
    return torch.autocast(device_type, enabled=False) if is_on(device_type) else contextlib.nullcontext()
