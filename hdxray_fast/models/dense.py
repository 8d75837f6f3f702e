"""Layers over whole images in standard operations alone: what exported and traced graphs are made of.

The layers themselves are called, under :func:`.standard_operations`: matrix products, softmax, LayerNorm and GELU,
with PyTorch's ``scaled_dot_product_attention``, no operator of this package. A sequence has all patches; those that are
not kept are no keys of any attention and part of no pooling, so that the others come out as from packed tokens of the
kept patches. ``kept`` is bool ``[B, S]``, prefix tokens included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.compiling import standard_operations
from .layers import Block, CrossBlock
from .pool import AttentionPool


def kept_tokens(keep: Tensor, num_prefix: int) -> Tensor:  # [B, gh, gw] bool -> [B, num_prefix + P] bool
    """Which tokens count, of the patches that are kept; all, in an image that keeps none."""
    keep = keep.flatten(1)
    keep = keep | ~keep.any(dim=1, keepdim=True)
    return torch.cat([keep.new_ones(keep.shape[0], num_prefix), keep], dim=1)


def run_block(block: Block, x: Tensor, kept: Tensor | None = None) -> Tensor:  # [B, S, D]
    """A block of dense tokens; what is hung on it or put around it is called."""
    with standard_operations(kept):
        return block(x)


def run_cross_block(
    block: CrossBlock,
    x: Tensor,  # [B, Q, D]
    y: Tensor,  # [B, S, D]
    kept: Tensor | None = None,
) -> Tensor:
    """:meth:`.CrossBlock.forward` of dense tokens."""
    with standard_operations(kept):
        return block(x, y)


def pooled(
    x: Tensor,  # [B, S, D]
    pool: str,
    num_prefix: int,
    attn_pool: AttentionPool | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """One vector per image, ``[B, D]``: ``"cls"``, ``"mean"`` (of the kept patches) or ``"attention"``."""
    if pool == "cls":
        return x[:, 0]
    if pool == "attention":
        return attention_pooled(attn_pool, x, kept)
    patches = x[:, num_prefix:]
    if kept is None:
        return patches.mean(dim=1)
    kept = kept[:, num_prefix:, None]
    return torch.where(kept, patches, 0.0).sum(dim=1) / kept.sum(dim=1)


def attention_pooled(pool: AttentionPool, x: Tensor, kept: Tensor | None = None) -> Tensor:  # [B, S, D] -> [B, D]
    """:meth:`.AttentionPool.forward` of dense tokens."""
    with standard_operations(kept):
        return pool(x)
