"""Values on their way from a device to the host, asked for when they are there."""

from __future__ import annotations

import torch
from torch import Tensor


class Copies:
    """Tensors on their way to the host."""

    def __init__(self, tensors: tuple[Tensor, ...], device: torch.device) -> None:
        self._arrived = None
        if device.type != "cuda" or not tensors:
            self._tensors = tuple(tensor.cpu() for tensor in tensors)
            return
        self._tensors = tuple(torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors)
        for here, there in zip(self._tensors, tensors, strict=True):
            here.copy_(there, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(device))

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors on the host, in memory of their own: what is page-locked is wanted for the next batch."""
        if self._arrived is None:
            return self._tensors
        self._arrived.synchronize()
        return tuple(tensor.clone() for tensor in self._tensors)
