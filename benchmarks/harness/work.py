"""What a case must do at least: floating-point operations, and bytes to and from device memory. Formulas, no timing.

FLOPs are those that ``hdxray-fast plan`` counts.
"""

from __future__ import annotations

import torch

from hdxray_fast.pretrain.work import (  # noqa: F401 - for the benchmarks
    attention_flops,
    block_flops,
    cross_decoder_flops,
    encoder_flops,
    self_decoder_flops,
)

SECTOR = 32  # bytes; the least that a GPU reads from or writes to device memory


def patch_sectors(
    ids: torch.Tensor,  # [N] int, patch ids, packed
    cu_seqlens: torch.Tensor,  # [B + 1] int
    grid_size: tuple[int, int],
    patch_size: int,
    pixel_bytes: int,
    channels: int = 1,
) -> int:
    """Sectors of the images' memory that hold at least one pixel of the given patches, each counted once.

    Images are ``[B, C, H, W]``, contiguous, and begin at a sector's first byte. Patch (row, column) covers bytes
    ``column * w .. (column + 1) * w - 1`` of each of its p pixel rows, with ``w = p * pixel_bytes``, and so the sectors
    ``floor(first / 32) .. floor(last / 32)``. Where w is no multiple of 32 neighbours share a sector (16-px patches of
    bytes: two to a sector), so the sectors of a row of patches are a set; its size times p pixel rows and C channels is
    the answer.

    Raises:
        ValueError: pixel rows do not all begin at a sector, so that not all of them are alike.
    """
    (gh, gw), width = grid_size, patch_size * pixel_bytes
    if gw * width % SECTOR:
        raise ValueError(f"rows of {gw * width} bytes do not begin at a sector of {SECTOR} bytes")
    ids, counts = ids.cpu().long(), cu_seqlens.cpu().long().diff()
    image = torch.repeat_interleave(torch.arange(len(counts)), counts)
    row, column = image * gh + ids // gw, ids % gw
    first, last = column * width // SECTOR, ((column + 1) * width - 1) // SECTOR
    reach = int((last - first).max()) + 1 if len(ids) else 0
    per_row = gw * width // SECTOR
    touched = [
        row[first + step <= last] * per_row + (first + step)[first + step <= last] for step in range(reach)
    ]  # patches differ in how many sectors they reach into
    unique = torch.cat(touched).unique().numel() if touched else 0
    return unique * patch_size * channels


def gather_bytes(
    ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    grid_size: tuple[int, int],
    patch_size: int,
    pixel_bytes: int,
    out_bytes: int,
    channels: int = 1,
) -> int:
    """Read: the patches' sectors and their int32 ids, once each. Written: the rows."""
    read = SECTOR * patch_sectors(ids, cu_seqlens, grid_size, patch_size, pixel_bytes, channels)
    return read + 4 * ids.numel() + ids.numel() * channels * patch_size**2 * out_bytes


def loss_bytes(
    ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    grid_size: tuple[int, int],
    patch_size: int,
    pixel_bytes: int,
    pred_bytes: int,
    training: bool,
) -> int:
    """Read once: the patches' sectors, ids, predictions. Written: the gradient, in training."""
    pixels = SECTOR * patch_sectors(ids, cu_seqlens, grid_size, patch_size, pixel_bytes) + 4 * ids.numel()
    pred = ids.numel() * patch_size**2 * pred_bytes
    return pixels + pred + (pred if training else 0)
