"""Position tables and first layers of foreign weights, made to fit another grid or another number of channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models.positions import resample_positions, sincos_positions

_SINCOS_TOLERANCE = 2e-3  # half a unit in the last place of bfloat16 at 1 is 2e-3


def split_positions(
    table: Tensor,  # [1, rows, D]
    prefixes: tuple[int, ...],
    hints: tuple[tuple[int, int] | None, ...],
    label: str,
) -> tuple[int, tuple[int, int], bool]:
    """What the rows of a position table stand for.

    Args:
        table: as the weights have it.
        prefixes: numbers of rows that may come before those of the patches, likeliest first.
        hints: grids that it may have: the first is told by the weights; the others, such as the one that was asked for,
            are tried before a square, since a count of rows like that of 8 x 32 is a square too.
        label: the weights, for errors.

    Returns:
        How many rows come first, the grid of the others, and whether these are MAE's fixed sine-cosine.

    Raises:
        CheckpointError: no grid fits.
    """
    rows = table.shape[1]
    told, *guesses = hints
    for prefix in prefixes:
        if told and rows - prefix == told[0] * told[1]:
            return prefix, told, _is_sincos(table, prefix, told)
    for prefix in prefixes:
        grid = _sincos_grid(table, prefix)
        if grid:
            return prefix, grid, True
    for grid in filter(None, guesses):
        for prefix in prefixes:
            if rows - prefix == grid[0] * grid[1]:
                return prefix, grid, False
    for prefix in prefixes:
        side = math.isqrt(max(rows - prefix, 0))
        if side and rows - prefix == side * side:
            return prefix, (side, side), False
    raise CheckpointError(
        f"{label}: its position table has {rows} rows, which is no square grid with {' or '.join(map(str, prefixes))} "
        "rows before it; create the encoder with the img_size the weights were trained at"
    )


def _is_sincos(table: Tensor, prefix: int, grid: tuple[int, int]) -> bool:
    if table.shape[2] % 4 or table[:, :prefix].any():
        return False
    expected = sincos_positions(table.shape[2], grid, class_token=False)
    return torch.allclose(table[:, prefix:], expected, rtol=0, atol=_SINCOS_TOLERANCE)


def _sincos_grid(table: Tensor, prefix: int) -> tuple[int, int] | None:
    """The grid for which the rows are sine-cosine, if they are."""
    patches = table[0, prefix:]
    if patches.shape[0] < 2 or table.shape[2] % 4:
        return None
    second_row = sincos_positions(table.shape[2], (2, 1), class_token=False)[0, 1]
    starts = (patches - second_row).abs().amax(1) <= _SINCOS_TOLERANCE  # column 0 of row 1: the width of the grid
    width = int(starts.nonzero()[0]) if starts.any() else patches.shape[0]
    if patches.shape[0] % width:
        return None
    grid = patches.shape[0] // width, width
    return grid if _is_sincos(table, prefix, grid) else None


def fit_positions(
    tensors: dict[str, Tensor],
    class_token: bool,
    prefix: int,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    sincos: bool,
) -> tuple[list[str], list[str]]:
    """Make ``tensors["pos_embed"]`` the table ``[1, class_token + P, D]`` of ``new_grid``, in place.

    Positions of register tokens are added to these tokens, which changes nothing.

    Returns:
        Lines for a report: what was resized, what was converted.
    """
    table, resized, converted = tensors["pos_embed"], [], []
    first, patches = table[:, :prefix], table[:, prefix:]
    if class_token and not prefix:
        first = table.new_zeros(1, 1, table.shape[2])
    elif prefix > class_token:
        tensors["reg_token"] = tensors["reg_token"] + first[:, int(class_token) :]
        first = first[:, : int(class_token)]
        converted.append("reg_token: its positions were added to it")
    if old_grid != new_grid:
        if sincos:
            how, patches = "sine-cosine, made anew", sincos_positions(table.shape[2], new_grid, class_token=False)
        else:
            how, patches = "learned, resampled (bicubic)", resample_positions(patches, old_grid, new_grid)
        resized.append(f"pos_embed: {old_grid[0]} x {old_grid[1]} to {new_grid[0]} x {new_grid[1]}, {how}")
    tensors["pos_embed"] = torch.cat([first, patches], dim=1)
    return resized, converted


def fit_channels(
    tensors: dict[str, Tensor],
    layer: str,
    in_chans: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> tuple[tuple[float, float] | None, list[str]]:
    """Make ``tensors[layer + ".weight"]`` ``[D, C, p, p]`` take ``in_chans`` channels, in place.

    3 to 1: the weight is summed over the channels, so that a grey image gives what it gave replicated to three. Where
    channels were normalised with a mean and deviation of their own, these go into weight and bias, exactly: patches are
    not padded. 1 to 3: a third of the weight for each channel.

    Returns:
        ``(mean, std)`` of pixels on [0, 1] for the new layer, if known, and lines for a report.
    """
    weight = tensors[f"{layer}.weight"]
    old = weight.shape[1]
    if mean is None or std is None or min(std) <= 0 or {len(mean), len(std)} - {1, old}:
        mean = std = None
    if mean is not None:
        means, stds = (torch.tensor(values, dtype=torch.float64).expand(old) for values in (mean, std))
        common = means.mean().item(), stds.mean().item()
    else:
        common = None
    lines = []
    if old == 3 and in_chans == 1:
        how = "summed over the channels"
        if common and (means.unique().numel() > 1 or stds.unique().numel() > 1):
            bias = tensors.get(f"{layer}.bias", weight.new_zeros(weight.shape[0])).double()
            offset = (common[0] - means) / stds  # [3]
            tensors[f"{layer}.bias"] = (bias + weight.double().sum((2, 3)) @ offset).float()
            weight = weight.double() * (common[1] / stds).view(1, 3, 1, 1)
            how += f", with mean {_show(mean)} and deviation {_show(std)} of each made {_show(common)}"
        tensors[f"{layer}.weight"] = weight.double().sum(1, keepdim=True).float()
        lines.append(f"{layer}: 3 channels to 1, {how}")
    elif old == 1 and in_chans == 3:
        tensors[f"{layer}.weight"] = (weight / 3).expand(-1, 3, -1, -1).contiguous()
        lines.append(f"{layer}: 1 channel to 3, a third of the weight for each")
    elif common and (means.unique().numel() > 1 or stds.unique().numel() > 1):
        lines.append(
            f"normalisation: {_show(common)}, the average of mean {_show(mean)} and deviation {_show(std)}; float "
            "images normalised channel by channel give the weights' own features"
        )
    return common, lines


def _show(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{v:.4g}' for v in values)})"
