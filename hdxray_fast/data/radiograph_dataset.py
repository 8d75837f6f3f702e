"""Cached canvases to training batches: what sample comes when, and how it is augmented, depends on counters alone.

Order, augmentation and masks are functions of ``(seed, epoch, sample index)``: the same for any number of workers or
ranks, and after a resume, with no random state to save.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..images.canvas import Canvas
from ..images.contour import rasterize_polygon
from .augment import RandAugment, Tone, gamma_tone
from .balance import deal_evenly, kept_patches
from .prepared.reading import PreparedSet, PreparedSubset
from .radiographs import standardisation


@dataclass(frozen=True)
class Augmentation:
    """Changes a radiograph can undergo and stay one: none of them mirrors it, since the heart lies on the left.

    Attributes:
        rotate: largest rotation, degrees.
        zoom: largest relative change of scale.
        shift: largest shift, as a share of the canvas side.
        gamma: largest ``|log2|`` of the exponent applied to the pixel values.
    """

    rotate: float = 5.0
    zoom: float = 0.1
    shift: float = 0.04
    gamma: float = 0.3

    def draw(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, Tone]:
        """A random affine map (``[2, 3] float64``, canvas to canvas pixels), and what follows it on the pixels."""
        angle = rng.uniform(-self.rotate, self.rotate)
        scale = float(np.exp2(rng.uniform(-1, 1) * np.log2(1 + self.zoom)))
        affine = cv2.getRotationMatrix2D((size / 2, size / 2), angle, scale)
        affine[:, 2] += rng.uniform(-self.shift, self.shift, 2) * size
        return affine, gamma_tone(float(np.exp2(rng.uniform(-self.gamma, self.gamma))))


class RadiographDataset(Dataset):
    """Map from ``(epoch, index)`` to one training sample.

    Each sample is a dict of ``pixels [1, S, S] uint8`` (``uint16`` from a prepared data set of 16 bits), ``inside`` and
    ``valid`` ``[S/p, S/p] bool``, ``scale`` and ``shift`` float32 (``pixel * scale + shift`` has mean 0 and deviation 1
    over the radiograph), ``index`` int64, and ``draw`` int64: the count of this epoch's turn of this image, which its
    mask is drawn by (a batch may straddle two epochs).

    Args:
        images: a prepared data set, or some images of one.
        patch_size: side of a patch, pixels.
        augmentation: ``None`` for the canvas as it is.
        seed: of the augmentation.

    Attributes:
        size: canvas side, pixels.
    """

    def __init__(
        self,
        images: PreparedSet | PreparedSubset,
        *,
        patch_size: int = 16,
        augmentation: Augmentation | RandAugment | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.size, self.patch_size = images, images.size, patch_size
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return self.sample(*key)

    def sample(self, epoch: int, index: int, drawn_by: int | None = None) -> dict[str, torch.Tensor]:
        """One training sample; ``drawn_by`` takes the place of ``index`` where the augmentation is drawn."""
        image = self.images[index]
        pixels, box, polygon = image.pixels, image.valid_box, image.polygon
        if self.augmentation is None:
            pixels = pixels if pixels.flags.writeable else pixels.copy()  # a tensor of a mapped file could be written
            valid = Canvas(pixels, box, {}).valid_grid(self.patch_size)
        else:
            counter = (epoch << 32) + (index if drawn_by is None else drawn_by)
            rng = np.random.Generator(np.random.Philox(key=[self.seed, counter]))
            affine, tone = self.augmentation.draw(rng, self.size)
            pixels = tone(cv2.warpAffine(pixels, affine, (self.size, self.size), flags=cv2.INTER_LINEAR))
            polygon = _transform(polygon, affine)
            valid = self._warped_valid(box, affine)
        inside = rasterize_polygon(polygon, self.size, self.patch_size) & valid
        scale, shift = standardisation(pixels, valid)
        return {
            "pixels": torch.from_numpy(pixels)[None],
            "inside": torch.from_numpy(inside),
            "valid": torch.from_numpy(valid),
            "scale": torch.tensor(scale, dtype=torch.float32),
            "shift": torch.tensor(shift, dtype=torch.float32),
            "index": torch.tensor(index),
            "draw": torch.tensor(epoch * len(self) + index),
        }

    def name(self, index: int) -> str:
        """Where an image comes from, as the user named it."""
        return self.images.source(index)

    def kept_patches(self, ratio_inside: float, ratio_outside: float) -> np.ndarray:
        """About how many patches of each image are kept, ``[N] float64``."""
        inside, valid = self.images.shares_by_image()
        patches = (self.size // self.patch_size) ** 2
        return kept_patches(inside, valid, patches, ratio_inside, ratio_outside)

    def _warped_valid(self, box: tuple[int, int, int, int], affine: np.ndarray) -> np.ndarray:
        """Patches that the moved radiograph still touches, to a quarter of a patch. ``[S/p, S/p] bool``."""
        top, left, height, width = box
        right, bottom = left + width, top + height
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
        cell = self.patch_size / 4
        grid = self.size // self.patch_size
        fine = np.zeros((4 * grid, 4 * grid), np.uint8)
        # pixel centres of `fine` lie at (i + 0.5) cells
        cv2.fillConvexPoly(fine, np.rint(_transform(corners, affine) / cell - 0.5).astype(np.int32), 1)
        return fine.reshape(grid, 4, grid, 4).any(axis=(1, 3))


def _transform(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return (points @ affine[:, :2].T + affine[:, 2]).astype(np.float32)


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
