"""One vector per image from packed tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import CrossAttention
from .packing import image_of_row


def mean_pool(values: Tensor, cu_seqlens: Tensor, num_prefix: int) -> Tensor:
    """Mean of each image's patch tokens, prefix tokens left out.

    Args:
        values: ``[N, D]`` packed tokens, the prefix tokens first in each sequence.
        cu_seqlens: ``[B + 1]`` int32; rows past its end (slack) are left out.
        num_prefix: prefix tokens of each sequence.

    Returns:
        ``[B, D]`` in the dtype of ``values``, summed in at least float32; zeros for an image without patches.
    """
    batch = cu_seqlens.shape[0] - 1
    rows = torch.arange(values.shape[0], device=values.device)
    image = image_of_row(cu_seqlens, values.shape[0])
    # prefix tokens and slack go to a row of their own, which is dropped
    is_patch = (rows - cu_seqlens[image] >= num_prefix) & (rows < cu_seqlens[-1])
    sums = values.new_zeros(batch + 1, values.shape[1], dtype=torch.promote_types(values.dtype, torch.float32))
    sums = sums.index_add(0, torch.where(is_patch, image, batch), values.to(sums.dtype))[:-1]
    counts = (cu_seqlens.diff() - num_prefix).clamp(min=1).unsqueeze(1)
    return (sums / counts).to(values.dtype)


class AttentionPool(nn.Module):
    """A learned query attends to all tokens of an image (https://arxiv.org/abs/2205.01917, section 3.2)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.norm = nn.LayerNorm(dim)
        self.attn = CrossAttention(dim, dim, num_heads)
        nn.init.trunc_normal_(self.query, std=dim**-0.5)

    def forward(
        self,
        values: Tensor,  # [N, D], or under standard_operations [B, S, D]
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:  # [B, D]
        if cu_seqlens is None:
            queries = self.query.expand(values.shape[0], 1, -1)
            return self.attn(queries, self.norm(values)).squeeze(1)
        batch = cu_seqlens.shape[0] - 1
        one_each = torch.arange(batch + 1, device=cu_seqlens.device, dtype=torch.int32)
        queries = self.query.expand(batch, -1)
        return self.attn(queries, self.norm(values), one_each, cu_seqlens, 1, max_seqlen)
