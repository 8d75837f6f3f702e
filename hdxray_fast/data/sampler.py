"""Which sample comes when: an endless walk through shuffled epochs, cut into steps and batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from .balance import deal_evenly
from .order import GlobalOrder, Order


class StepSampler(Sampler):
    """Batches of ``(epoch, index)``: an endless walk through freshly shuffled epochs, cut by step and rank.

    Step ``s`` holds the positions ``[s * G, (s + 1) * G)`` of the walk, ``G = batch_size * grad_accum * world_size``.
    Without ``costs``, micro-batch after micro-batch and rank after rank takes the next slice of them; with, they are
    dealt out so that all have nearly the same cost. Starting at a later step continues the same walk. With an order of
    several nodes, each node's ranks share its images alone; ranks of a node follow each other.

    Args:
        length: images in the data set.
        batch_size: images per rank and micro-batch.
        first, last: micro-batches to yield, ``range(first, last)``.
        seed: of the order.
        rank, world_size: this process, of how many.
        grad_accum: micro-batches of a step.
        costs: ``[length]``, of each image.
        order: of each epoch; a full shuffle by ``seed`` if left out.
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
        order: Order | None = None,
    ) -> None:
        self.length, self.batch_size, self.first, self.last = length, batch_size, first, last
        self.rank, self.world_size = rank, world_size
        self.order = GlobalOrder(length, seed) if order is None else order
        self.grad_accum, self.costs = grad_accum, costs
        self._epoch_of_order, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step_of_keys, keys, dealt = -1, [], []
        for micro in range(self.first, self.last):
            step, part = divmod(micro, self.grad_accum)
            if step != step_of_keys:
                self.order.reached(step * self.images_per_step)
                step_of_keys, keys = step, self.step_keys(step)
                dealt = self._deal(keys)
            yield [keys[position] for position in dealt[part * self.world_size + self.rank]]

    def step_keys(self, step: int) -> list[tuple[int, int]]:
        """All images of a step, in the order of the walk: the same however many ranks share them."""
        images = self.images_per_step
        return [self._key(position) for position in range(step * images, (step + 1) * images)]

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.grad_accum * self.world_size

    def _key(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch_of_order:
            self._epoch_of_order, self._order = epoch, self.order.epoch(epoch)
        return epoch, int(self._order[offset])

    def _deal(self, keys: list[tuple[int, int]]) -> list[list[int]]:
        """Positions in ``keys`` of each batch: those of the first micro-batch by rank, then those of the second..."""
        nodes = self.order.nodes  # a step begins at a multiple of them: position p is of node p % nodes
        ranks = self.world_size // nodes
        parts = [self._deal_node(keys, range(node, len(keys), nodes), ranks) for node in range(nodes)]
        return [
            part[micro * ranks + rank] for micro in range(self.grad_accum) for part in parts for rank in range(ranks)
        ]

    def _deal_node(self, keys: list[tuple[int, int]], positions: range, ranks: int) -> list[list[int]]:
        """Of the positions of a node, those of each of its batches."""
        batches = self.grad_accum * ranks
        if self.costs is not None:
            costs = self.costs[[keys[position][1] for position in positions]]
            return [[positions[i] for i in batch] for batch in deal_evenly(costs, batches)]
        return [list(positions[i * self.batch_size : (i + 1) * self.batch_size]) for i in range(batches)]
