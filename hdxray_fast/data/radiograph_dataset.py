"""Cached canvases to training samples: how each is augmented depends on counters alone.

Order, augmentation and masks are functions of ``(seed, epoch, sample index)``: the same for any number of workers or
ranks, and after a resume, with no random state to save.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import ArgumentError
from ..images.canvas import Canvas
from ..images.contour import rasterize_polygon
from ..images.standardise import standardisation
from .augment import Augmentation, RandAugment, eight_bits
from .balance import kept_patches
from .prepared.reading import PreparedSet, PreparedSubset
from .radiographs import standardisation_of_view


class RadiographDataset(Dataset):
    """Map from ``(epoch, index)`` to one training sample.

    Each sample is a dict of ``pixels [1, S, S] uint8`` (``uint16`` from a prepared data set of 16 bits, unless asked
    for 8), ``inside`` and
    ``valid`` ``[S/p, S/p] bool``, ``scale`` and ``shift`` float32 (``pixel * scale + shift`` has mean 0 and deviation 1
    over the radiograph), ``index`` int64, and ``draw`` int64: the count of this epoch's turn of this image, which its
    mask is drawn by (a batch may straddle two epochs). With ``views``, pixels are the canvas as it is, and beside them
    lie ``affine [2, 3] float32`` and ``table [256] uint8`` (``[257] uint16``), the :class:`hdxray_fast.View` to see it
    through; all else is of the view.

    Args:
        images: a prepared data set, or some images of one.
        patch_size: side of a patch, pixels.
        augmentation: ``None`` for the canvas as it is.
        seed: of the augmentation.
        bits: 8 for pixels of 8 bits whatever the data set has; its own by default.
        views: augment where the pixels are read, at the patches that are wanted, rather than here.

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
        views: bool = False,
        bits: Literal[8] | None = None,
    ) -> None:
        if views and not isinstance(augmentation, Augmentation):
            raise ArgumentError(
                f"views: a map and a table cannot express {type(augmentation).__name__}; accepted is Augmentation"
            )
        self.views, self.bits = views, bits
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
        if self.bits == 8:
            pixels = eight_bits(pixels)
        view = {}
        if self.augmentation is None or self.views:
            pixels = pixels if pixels.flags.writeable else pixels.copy()  # a tensor could be written to
        if self.augmentation is None:
            valid = Canvas(pixels, box, {}).valid_grid(self.patch_size)
        else:
            counter = (epoch << 32) + (index if drawn_by is None else drawn_by)
            rng = np.random.Generator(np.random.Philox(key=[self.seed, counter]))
            if self.views:
                affine, table = self.augmentation.draw_view(rng, self.size, pixels.dtype)
                to_canvas = cv2.invertAffineTransform(affine).astype(np.float32)
                view = {"affine": torch.from_numpy(to_canvas), "table": torch.from_numpy(table)}
            else:
                affine, tone = self.augmentation.draw(rng, self.size)
                pixels = tone(cv2.warpAffine(pixels, affine, (self.size, self.size), flags=cv2.INTER_LINEAR))
            polygon = _transform(polygon, affine)
            valid = self._warped_valid(box, affine)
        inside = rasterize_polygon(polygon, self.size, self.patch_size) & valid
        scale, shift = standardisation_of_view(pixels, box, table) if view else standardisation(pixels, valid)
        return {
            **view,
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
        across = fine.view(np.uint32) != 0  # [4 * grid, grid]: four cells at once
        return across.reshape(grid, 4, grid).any(axis=1)


def _transform(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return (points @ affine[:, :2].T + affine[:, 2]).astype(np.float32)
