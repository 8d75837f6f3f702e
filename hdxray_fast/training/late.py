"""The batches of the steps to come, on their way to where the model is while the step before them runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from .trees import tensors_of


class Feed:
    """The batches of step after step, where the model is.

    On a GPU they are copied by a stream of their own, beside the step before.

    Args:
        batches: on the host.
        each: batches of a step.
        shape: sees those of a step together, before they are moved.
        to_device: moves one.
        device: where to.
    """

    def __init__(
        self,
        batches: Iterator[dict],
        each: int,
        shape: Callable[[list[dict]], list[dict]],
        to_device: Callable[[dict, torch.device], dict],
        device: torch.device,
    ) -> None:
        self._batches, self._each, self._shape = batches, each, shape
        self._to_device, self._device = to_device, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: tuple[list[dict], float] | None = None

    def ahead(self) -> None:
        """Read the batches of the next step now, and begin to move them."""
        began = time.perf_counter()
        read = [next(self._batches) for _ in range(self._each)]
        waited = time.perf_counter() - began
        read = self._shape(read)
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            self._next = [self._to_device(batch, self._device) for batch in read], waited

    def take(self) -> tuple[list[dict], float]:
        """The batches of the next step, and the seconds that the host waited until they were read."""
        if self._next is None:
            self.ahead()
        (micro, waited), self._next = self._next, None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in tensors_of(micro).values():
                tensor.record_stream(current)  # its memory is not given away before this stream is done with it
        return micro, waited
