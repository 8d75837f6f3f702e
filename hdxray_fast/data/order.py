"""In which order images are trained on: a function of seed and epoch, and for blocks of the number of nodes.

A full shuffle asks a disk for single images all over the set. A shuffle in blocks gives each node (the processes of a
machine) runs of the set for an epoch, which it can read in large pieces, and shuffles within blocks of many runs, as
MosaicML's ``py1e`` and FFCV's quasi-random order do.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import numpy as np

RUN = 256  # images that lie one after another and stay together until they are in a block: those of a usual shard


class Order(Protocol):
    """Which image comes when.

    Attributes:
        nodes: that share each step; position ``p`` of the endless walk through the epochs is of node ``p % nodes``.
    """

    nodes: int

    def epoch(self, epoch: int) -> np.ndarray:
        """A permutation of the images, ``[N] int64``."""

    def reached(self, position: int) -> None:
        """The walk goes on at this position; what comes next may be made ready."""


class GlobalOrder:
    """Every order of the images is as likely as any other."""

    nodes = 1

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed

    def epoch(self, epoch: int) -> np.ndarray:
        return generator(self.seed, epoch).permutation(self.length)

    def reached(self, position: int) -> None:
        pass


class BlockOrder:
    """Each node has runs of the set for an epoch, and shuffles them in blocks.

    Runs of :data:`RUN` images (or the pieces that a set is read in, such as chunks) are shuffled and dealt out: each
    node gets as many images as its turns in the epoch (a run at a border is shared by two). What it got is cut into
    blocks of equal size, each shuffled. Every image comes once an epoch, and each step takes as many images of one node
    as of another, however it is split into batches.

    Args:
        length: images in the data set.
        seed: of the order.
        nodes: that share each step.
        block: images of a block, at least; all of a node's, where it has fewer.
        starts: ``[n]``, the first image of each run.
    """

    def __init__(self, length: int, seed: int, nodes: int, block: int, starts: np.ndarray | None = None) -> None:
        self.length, self.seed, self.nodes, self.block, self.starts = length, seed, nodes, block, starts

    def epoch(self, epoch: int) -> np.ndarray:
        order = np.empty(self.length, np.int64)
        for node, blocks in enumerate(self.blocks(epoch)):
            order[self.first(epoch, node) :: self.nodes] = np.concatenate(blocks)
        return order

    def first(self, epoch: int, node: int) -> int:
        """Place within an epoch of a node's first image there; the others follow every ``nodes`` places."""
        return (node - epoch * self.length) % self.nodes

    def blocks(self, epoch: int) -> list[list[np.ndarray]]:
        """Of each node, its blocks in turn, each shuffled ``[n] int64``."""
        rng = generator(self.seed, epoch)
        return [[rng.permutation(rows) for rows in blocks] for blocks in self._unshuffled(rng, epoch)]

    def runs(self, epoch: int, node: int) -> list[np.ndarray]:
        """Of a node, the images of its blocks as they lie in the set, run after run."""
        return self._unshuffled(generator(self.seed, epoch), epoch)[node]

    def reached(self, position: int) -> None:
        pass

    def _unshuffled(self, rng: np.random.Generator, epoch: int) -> list[list[np.ndarray]]:
        starts = range(0, self.length, RUN) if self.starts is None else self.starts.tolist()
        runs = [np.arange(start, end) for start, end in pairwise([*starts, self.length])]
        rows = np.concatenate([runs[number] for number in rng.permutation(len(runs))])
        counts = [len(range(self.first(epoch, node), self.length, self.nodes)) for node in range(self.nodes)]
        ends = np.cumsum([0, *counts])
        return [
            np.array_split(rows[start:end], max(1, (end - start) // self.block))
            for start, end in pairwise(ends.tolist())
        ]


def generator(seed: int, epoch: int) -> np.random.Generator:
    """Philox at these counters."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))
