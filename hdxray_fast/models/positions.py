"""Position embeddings: fixed 2-D sine-cosine tables, and learned ones brought to another grid."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError


def sincos_positions(dim: int, grid_size: tuple[int, int], name: str = "embed_dim", class_token: bool = True) -> Tensor:
    """Fixed 2-D sine-cosine positions with a zero row for the class token, float32 ``[1, 1 + gh * gw, dim]``.

    As facebookresearch/mae (``get_2d_sincos_pos_embed``): the first half of the channels encodes the column (w goes
    first), the second half the row; each is sin then cos of ``position / 10000^(i / (dim / 4))``. Without class token
    there is no zero row.

    Raises:
        ArgumentError: ``dim`` (called ``name`` in the message) is no multiple of 4.
    """
    if dim % 4:
        raise ArgumentError(f"{name}: got {dim}, 2-D sine-cosine positions need a multiple of 4")
    frequencies = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4))  # [dim / 4]
    rows, columns = np.indices(grid_size, dtype=np.float64).reshape(2, -1)  # each [gh * gw]
    angles = np.stack([np.outer(columns, frequencies), np.outer(rows, frequencies)], axis=1)  # [P, 2, dim / 4]
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(-1, dim)  # [P, dim]
    table = np.concatenate([np.zeros((int(class_token), dim)), waves])
    return torch.from_numpy(table).float().unsqueeze(0)


def set_positions(module: nn.Module, name: str, table: Tensor, learned: bool = False) -> None:
    """Give ``module`` the table ``[1, S, D]`` under ``name``: a parameter if it is learned, else a buffer.

    A buffer is saved and moved like a parameter, and stays fixed whatever unfreezes the parameters.
    """
    for kept in (module._parameters, module._buffers):
        kept.pop(name, None)
    if learned:
        module.register_parameter(name, nn.Parameter(table))
    else:
        module.register_buffer(name, table)


def resample_positions(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Learned positions for another grid: bicubic with antialiasing, as timm does it; prefix rows stay as they are.

    Args:
        table: ``[1, num_prefix + old_gh * old_gw, D]``.
        old_grid: its grid.
        new_grid: the grid wanted.

    Returns:
        ``[1, num_prefix + new_gh * new_gw, D]`` in the dtype of ``table``.
    """
    num_prefix = table.shape[1] - old_grid[0] * old_grid[1]
    if old_grid == new_grid:
        return table
    prefix, grid = table[:, :num_prefix], table[:, num_prefix:]
    image = grid.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)  # [1, gh * gw, D] -> [1, D, gh, gw]
    image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True)
    grid = image.permute(0, 2, 3, 1).reshape(1, new_grid[0] * new_grid[1], -1)
    return torch.cat([prefix, grid.to(table.dtype)], dim=1)
