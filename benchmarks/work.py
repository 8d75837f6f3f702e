"""What a case must do at least: floating-point operations, and bytes to and from device memory. Formulas, no timing.

An operation is one multiplication or one addition; softmax, norms and GELU are left out, as is usual. A training step
counts as three forward passes (each product is done again for either of its operands), attention by itself as 3.5: its
backward pass has five products where the forward has two, one of them the scores once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SECTOR = 32  # bytes; the least that a GPU reads from or writes to device memory


def attention_flops(
    lengths_q: Sequence[int], lengths_k: Sequence[int], heads: int, head_dim: int, training: bool
) -> float:
    """Of softmax(q k^T) v over all sequences: 4 Sq Sk D a head, 3.5 times that with the backward pass."""
    scores = sum(q * k for q, k in zip(lengths_q, lengths_k, strict=True))
    return 4.0 * scores * heads * head_dim * (3.5 if training else 1.0)


def block_flops(tokens: int, dim: int, mlp_ratio: float = 4.0) -> float:
    """Forward pass of a transformer block: (8 + 4 r) n d^2 in the linear layers, 4 n^2 d in self-attention."""
    return (8 + 4 * mlp_ratio) * tokens * dim**2 + 4.0 * tokens**2 * dim


def encoder_flops(tokens: int, dim: int, depth: int, patch_values: int) -> float:
    """Forward pass over one image; ``tokens`` counts the class token."""
    return depth * block_flops(tokens, dim) + 2.0 * (tokens - 1) * patch_values * dim


def self_decoder_flops(visible: int, tokens: int, encoder_dim: int, dim: int, depth: int, patch_values: int) -> float:
    """Forward pass over one image: ``visible`` encoder tokens among ``tokens``, class tokens included."""
    ends = 2.0 * visible * encoder_dim * dim + 2.0 * (tokens - 1) * dim * patch_values
    return depth * block_flops(tokens, dim) + ends


def cross_decoder_flops(
    visible: int, queries: int, encoder_dim: int, dim: int, depth: int, patch_values: int, maps: int
) -> float:
    """Forward pass over one image: ``queries`` predicted patches attend to ``visible`` encoder tokens in each block."""
    linear = (4 + 16) * queries * dim**2 + 4.0 * visible * encoder_dim * dim  # q, proj, MLP; k and v
    attention = 4.0 * queries * visible * dim
    mixtures = 2.0 * depth * maps * visible * encoder_dim
    return depth * (linear + attention) + mixtures + 2.0 * queries * dim * patch_values


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
    """Read: the patches' sectors, ids, predictions (all of them again in the backward pass). Written: the gradient."""
    pixels = SECTOR * patch_sectors(ids, cu_seqlens, grid_size, patch_size, pixel_bytes) + 4 * ids.numel()
    pred = ids.numel() * patch_size**2 * pred_bytes
    return (pixels + pred) * (2 if training else 1) + (pred if training else 0)
