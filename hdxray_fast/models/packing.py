"""Where rows of packed sequences lie: prefix tokens in front of each image's patches, images of rows, grids of rows."""

from __future__ import annotations

import torch
from torch import Tensor


def token_rows(cu_seqlens: Tensor, total: int, num_prefix: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Where patches and prefix tokens go when each of the packed sequences gets its prefix tokens in front.

    Args:
        cu_seqlens: ``[B + 1]`` int32, of the patches alone.
        total: number of rows (a Python int, so that no device has to be waited for); those past ``cu_seqlens[-1]``,
            a plan's slack, stay behind all sequences.
        num_prefix: class and register tokens of each sequence.

    Returns:
        ``patch_rows [total]`` int64, ``prefix_rows [B * num_prefix]`` int64, and the new ``cu_seqlens [B + 1]`` int32.
    """
    device, batch = cu_seqlens.device, cu_seqlens.shape[0] - 1
    image = image_of_row(cu_seqlens, total)
    patch_rows = torch.arange(total, device=device) + (image + 1) * num_prefix
    with_prefix = cu_seqlens + num_prefix * torch.arange(batch + 1, device=device, dtype=torch.int32)
    prefix_rows = with_prefix[:-1, None].long() + torch.arange(num_prefix, device=device)  # [B, num_prefix]
    return patch_rows, prefix_rows.flatten(), with_prefix


def image_of_row(cu_seqlens: Tensor, total: int) -> Tensor:
    """Image number of each packed row, int64 ``[total]``; the last image's for rows past ``cu_seqlens[-1]``."""
    rows = torch.arange(total, device=cu_seqlens.device, dtype=torch.int32)
    images = torch.searchsorted(cu_seqlens[1:], rows, right=True)
    return images.clamp_(max=cu_seqlens.shape[0] - 2)


def to_grid(rows: Tensor, ids: Tensor, cu_seqlens: Tensor, num_patches: int) -> Tensor:
    """Packed rows laid out on their images' grids, zeros where a patch is not among them.

    Args:
        rows: ``[N, D]``.
        ids: ``[N]`` int32 patch ids within the image.
        cu_seqlens: ``[B + 1]`` int32; rows past its end (slack) are left out.
        num_patches: P, patches of a grid.

    Returns:
        ``[B, P, D]``; differentiable with respect to ``rows``.
    """
    batch, total = cu_seqlens.shape[0] - 1, rows.shape[0]
    cells = image_of_row(cu_seqlens, total) * num_patches + ids
    real = torch.arange(total, device=ids.device) < cu_seqlens[-1]
    cells = torch.where(real, cells, batch * num_patches)  # one cell more takes the slack
    grid = rows.new_zeros(batch * num_patches + 1, rows.shape[1])
    return grid.index_copy(0, cells, rows)[:-1].unflatten(0, (batch, num_patches))
