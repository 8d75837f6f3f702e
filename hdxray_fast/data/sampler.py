"""Which sample comes when: an endless walk through shuffled epochs, a function of ``(seed, epoch)`` alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from .balance import deal_evenly


class StepSampler(Sampler):
    """Batches of ``(epoch, index)``: an endless walk through freshly shuffled epochs, cut by step and rank.

    Step ``s`` holds the positions ``[s * G, (s + 1) * G)`` of the walk, ``G = batch_size * grad_accum * world_size``.
    Without ``costs``, micro-batch after micro-batch and rank after rank takes the next slice of them; with, they are
    dealt out so that all have nearly the same cost. Starting at a later step continues the same walk.

    Args:
        length: images in the data set.
        batch_size: images per rank and micro-batch.
        first, last: micro-batches to yield, ``range(first, last)``.
        seed: of the order.
        rank, world_size: this process, of how many.
        grad_accum: micro-batches of a step.
        costs: ``[length]``, of each image.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        first: int = 0,
        last: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        grad_accum: int = 1,
        costs: np.ndarray | None = None,
    ) -> None:
        self.length, self.batch_size, self.first, self.last = length, batch_size, first, last
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.grad_accum, self.costs = grad_accum, costs
        self._epoch_of_order, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step_of_keys, keys, dealt = -1, [], []
        for micro in range(self.first, self.last):
            step, part = divmod(micro, self.grad_accum)
            if step != step_of_keys:
                step_of_keys, keys = step, self.step_keys(step)
                dealt = self._deal(keys)
            yield [keys[position] for position in dealt[part * self.world_size + self.rank]]

    def step_keys(self, step: int) -> list[tuple[int, int]]:
        """All images of a step, in the order of the walk: the same however many ranks share them."""
        images = self.batch_size * self.grad_accum * self.world_size
        return [self._key(position) for position in range(step * images, (step + 1) * images)]

    def _key(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch_of_order:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._epoch_of_order, self._order = epoch, rng.permutation(self.length)
        return epoch, int(self._order[offset])

    def _deal(self, keys: list[tuple[int, int]]) -> list[list[int]]:
        """Positions in ``keys`` of each batch: those of the first micro-batch by rank, then those of the second..."""
        batches = self.grad_accum * self.world_size
        if self.costs is not None:
            return deal_evenly(self.costs[[index for _, index in keys]], batches)
        return [list(range(i * self.batch_size, (i + 1) * self.batch_size)) for i in range(batches)]
