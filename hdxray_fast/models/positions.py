"""Position embeddings: fixed 2-D sine-cosine tables, and learned ones brought to another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError


def sincos_positions(
    dim: int,
    grid_size: tuple[int, int],
    name: str = "embed_dim",
    class_token: bool = True,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Fixed 2-D sine-cosine positions with a zero row for the class token, float32 ``[1, 1 + gh * gw, dim]``.

    As facebookresearch/mae (``get_2d_sincos_pos_embed``): the first half of the channels encodes the column (w goes
    first), the second half the row; each is sin then cos of ``position / 10000^(i / (dim / 4))``. Without class token
    there is no zero row. They are made on ``device``, and cost little: a wave is computed for each row and each column.

    Raises:
        ArgumentError: ``dim`` (called ``name`` in the message) is no multiple of 4.
    """
    if dim % 4:
        raise ArgumentError(f"{name}: got {dim}, 2-D sine-cosine positions need a multiple of 4")
    height, width = grid_size
    steps = torch.arange(dim // 4, dtype=torch.float64, device=device)
    frequencies = 1.0 / 10000 ** (steps / (dim / 4))  # [dim / 4]
    rows, columns = (
        torch.outer(torch.arange(count, dtype=torch.float64, device=device), frequencies) for count in (height, width)
    )
    rows, columns = (torch.cat([angles.sin(), angles.cos()], dim=1).float() for angles in (rows, columns))
    columns = columns[None].expand(height, -1, -1)  # [gw, dim / 2] -> [gh, gw, dim / 2]
    rows = rows[:, None].expand(-1, width, -1)  # [gh, dim / 2] -> [gh, gw, dim / 2]
    waves = torch.cat([columns, rows], dim=2).flatten(0, 1)  # [P, dim]
    return torch.cat([waves.new_zeros(int(class_token), dim), waves]).unsqueeze(0)


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
