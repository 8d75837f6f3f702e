"""Patch embeddings: a gathered row of pixels in, a token out; or whole images in, as a convolution would have it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from .plain import is_plain

Grid = tuple[int, int, int]  # batch, rows and columns of patches


class PatchEmbed(nn.Module):
    """One linear layer on the flattened patch; the weight has the shape of MAE's convolution, ``[D, C, p, p]``.

    A layer that is no plain convolution any more (hooks, adapters, parametrisations) is called: on the images where the
    rows are all patches of a grid, on each patch as an image of its own where they are not.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size, self.in_chans = patch_size, in_chans
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, rows: Tensor, grid: Grid | None = None) -> Tensor:
        """Rows ``[N, p * p * C]`` in MAE's order (p row, q column, c) to tokens ``[N, D]``.

        Whole images ``[B, C, H, W]`` of a float dtype are taken too, as timm's embeddings do, and give ``[B, P, D]``.
        """
        if rows.dim() == 4:
            return self.embed_images(rows)
        if not is_plain(self.proj, nn.Conv2d):
            return _tokens(self.embed_images(_as_images(rows, self.patch_size, self.in_chans, grid)))
        return F.linear(rows, _rows_weight(self.proj), self.proj.bias)

    def embed_images(self, images: Tensor) -> Tensor:  # [B, C, H, W] float -> [B, P, D]
        return self.proj(images).flatten(2).transpose(1, 2)


class StemPatchEmbed(nn.Module):
    """HD X-ray's embedding of a 64-px patch: 16-px convolution, 4x4 convolution, 1x1 projection, ReLU between.

    Every stride equals its kernel, so a patch never looks at its neighbours, and each layer is a matrix product on
    gathered rows; layers that are no plain convolutions any more are called, as in :class:`PatchEmbed`.
    """

    patch_size = 64

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.conv1 = nn.Conv2d(in_chans, embed_dim, 16, stride=16)
        self.conv2 = nn.Conv2d(embed_dim, embed_dim, 4, stride=4)
        self.proj = nn.Conv2d(embed_dim, embed_dim, 1)

    def forward(self, rows: Tensor, grid: Grid | None = None) -> Tensor:
        """Rows ``[N, 64 * 64 * C]`` in MAE's order (p row, q column, c) to tokens ``[N, D]``; images as there."""
        if rows.dim() == 4:
            return self.embed_images(rows)
        if not all(is_plain(layer, nn.Conv2d) for layer in (self.conv1, self.conv2, self.proj)):
            return _tokens(self.embed_images(_as_images(rows, self.patch_size, self.in_chans, grid)))
        cells = rows.unflatten(-1, (4, 16, 4, 16, self.in_chans))  # [N, 4, 16, 4, 16, C]
        cells = cells.permute(0, 1, 3, 2, 4, 5).flatten(3)  # -> [N, 4, 4, 16, 16, C] -> [N, 4, 4, 16 * 16 * C]
        cells = F.relu(F.linear(cells, _rows_weight(self.conv1), self.conv1.bias))  # [N, 4, 4, D]
        patches = F.relu(F.linear(cells.flatten(1), _rows_weight(self.conv2), self.conv2.bias))  # [N, D]
        return F.linear(patches, _rows_weight(self.proj), self.proj.bias)

    def embed_images(self, images: Tensor) -> Tensor:  # [B, C, H, W] float -> [B, P, D]
        x = F.relu(self.conv2(F.relu(self.conv1(images))))
        return self.proj(x).flatten(2).transpose(1, 2)


def build_patch_embed(stem: str, patch_size: int, in_chans: int, embed_dim: int) -> PatchEmbed | StemPatchEmbed:
    """The embedding called ``stem``: ``"patch16"`` (one convolution, any patch size) or ``"stem64"``."""
    if stem != "stem64":
        return PatchEmbed(patch_size, in_chans, embed_dim)
    if patch_size != StemPatchEmbed.patch_size:
        raise ArgumentError(f"patch_size: got {patch_size}, the stem64 embedding has patches of 64 pixels")
    return StemPatchEmbed(in_chans, embed_dim)


def _as_images(rows: Tensor, p: int, channels: int, grid: Grid | None) -> Tensor:
    """Whole images ``[B, C, gh * p, gw * p]`` of all rows of a grid, or each row's patch ``[N, C, p, p]``."""
    batch, height, width = (rows.shape[0], 1, 1) if grid is None else grid
    pixels = rows.unflatten(-1, (p, p, channels)).unflatten(0, (batch, height, width))  # [B, gh, gw, p, p, C]
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height * p, width * p)


def _tokens(embedded: Tensor) -> Tensor:  # [B, P, D] -> [B * P, D]
    return embedded.flatten(0, 1)


def _rows_weight(conv: nn.Conv2d) -> Tensor:
    return conv.weight.permute(0, 2, 3, 1).flatten(1)  # [D, C, p, p] -> [D, p, p, C] -> [D, p * p * C]
