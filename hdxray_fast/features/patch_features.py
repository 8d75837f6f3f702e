"""What an encoder makes of each patch of a radiograph, and what these features have in common over many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError
from ..models.attention_weights import captured_inputs, query_weights
from ..models.encoder import Encoder
from ..models.inputs import encoder_inputs

COMPONENTS = 3  # as a picture has colours


@dataclass(frozen=True)
class PatchFeatures:
    """Features of the patches of one radiograph.

    Attributes:
        values: ``[N, D] float16``, of the patches that were looked at; normalised tokens of the last block.
        ids: ``[N] int64``, their places, row-major.
        grid_size: ``(height, width)`` in patches.
        attention: ``[N] float32``, share of each patch in the attention of the class token in the last block, mean over
            heads; ``None`` without class token.
    """

    values: np.ndarray
    ids: np.ndarray
    grid_size: tuple[int, int]
    attention: np.ndarray | None

    def on_grid(self, rows: np.ndarray) -> np.ndarray:
        """``[N, ...]`` on the grid ``[gh, gw, ...] float32``, NaN where the encoder did not look."""
        grid = np.full((self.grid_size[0] * self.grid_size[1], *rows.shape[1:]), np.nan, np.float32)
        grid[self.ids] = rows
        return grid.reshape(*self.grid_size, *rows.shape[1:])

    def row_of(self, place: int) -> int | None:
        """The row of the patch at ``place``; ``None`` if the encoder did not look at it."""
        found = np.flatnonzero(self.ids == place)
        return int(found[0]) if len(found) else None

    def without(self, positions: np.ndarray) -> PatchFeatures:
        """Less what comes from the place alone: ``[gh * gw, D] float32``, of :func:`.position_features`."""
        return replace(self, values=(self.values - positions[self.ids]).astype(np.float16))

    def similarity(self, row: int) -> np.ndarray:
        """Cosine of the feature in ``row`` to all, each less the mean of the radiograph: ``[N] float32``, -1 to 1.

        The mean goes first, because what all patches share makes any two of them look alike.
        """
        values = self.values.astype(np.float32)
        values -= values.mean(0)
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
        return values @ values[row]


@torch.no_grad()
def patch_features(encoder: Encoder, batch: dict[str, Tensor], keep: str) -> PatchFeatures:
    """Features of the patches of one radiograph.

    Args:
        encoder: in evaluation mode.
        batch: of one, as :func:`.as_batch` makes it.
        keep: ``"valid"`` or ``"contour"``: which patches are looked at.
    """
    inputs = encoder_inputs(encoder, batch, keep)
    with captured_inputs(encoder.blocks[-1].attn) as calls:
        tokens = encoder.encode(*inputs)
    prefix, attention = encoder.num_prefix_tokens, None
    if encoder.has_class_token:
        attention = query_weights(encoder.blocks[-1].attn, calls[-1], 0)[prefix:].cpu().numpy()
    values = tokens.values[prefix:].float().cpu().numpy().astype(np.float16)
    ids = inputs.plan.keep_ids.cpu().numpy().astype(np.int64)
    return PatchFeatures(values, ids, encoder.grid_size, attention)


@dataclass(frozen=True)
class PrincipalComponents:
    """The leading principal components of many features.

    Attributes:
        mean: ``[D] float32``.
        axes: ``[3, D] float32``, orthonormal; the first points to what is dark, if that is told, and of the others the
            largest entry is positive, so that signs do not change.
        low, high: ``[3] float32``, between which 98 % of the features lie along each axis.
        explained: ``[3] float32``, shares of the variance.
    """

    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    explained: np.ndarray

    @classmethod
    def of(cls, features: Sequence[np.ndarray], dark: Sequence[np.ndarray] | None = None) -> PrincipalComponents:
        """Fitted over ``[N, D]`` features of several radiographs together.

        Args:
            dark: of each, how dark the radiograph is there, ``[N]``.

        Raises:
            ArgumentError: the features are narrower than a picture has colours.
        """
        width = features[0].shape[1]
        if width < COMPONENTS:
            raise ArgumentError(f"weights: features of {width} numbers have no {COMPONENTS} components")
        count = sum(len(rows) for rows in features)
        mean = sum(rows.sum(0, dtype=np.float64) for rows in features) / count
        covariance = np.zeros((width, width))
        for rows in features:
            centred = rows.astype(np.float32) - mean.astype(np.float32)
            covariance += centred.T @ centred
        values, vectors = np.linalg.eigh(covariance)  # ascending
        axes = vectors[:, ::-1][:, :COMPONENTS].T
        axes *= np.sign(axes[np.arange(COMPONENTS), np.abs(axes).argmax(1)])[:, None]
        explained = values[::-1][:COMPONENTS] / max(values.sum(), 1e-12)
        mean, axes = mean.astype(np.float32), axes.astype(np.float32)
        along = np.concatenate([(rows.astype(np.float32) - mean) @ axes.T for rows in features])
        if dark is not None:
            levels = np.concatenate(list(dark))
            if (along[:, 0] * (levels - levels.mean())).sum() < 0:
                axes[0], along[:, 0] = -axes[0], -along[:, 0]
        low, high = np.percentile(along, (1, 99), axis=0).astype(np.float32)
        return cls(mean, axes, low, high, explained.astype(np.float32))

    def shares(self, features: np.ndarray) -> np.ndarray:
        """How far features ``[N, D]`` lie along each axis, from 0 at ``low`` to 1 at ``high``: ``[N, 3] float32``."""
        along = (features.astype(np.float32) - self.mean) @ self.axes.T
        return np.clip((along - self.low) / np.maximum(self.high - self.low, 1e-6), 0, 1)
