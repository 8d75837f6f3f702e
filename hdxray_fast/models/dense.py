"""Layers over whole images in standard operations alone: what exported and traced graphs are made of.

Matrix products, softmax, LayerNorm and GELU, with PyTorch's ``scaled_dot_product_attention``: no operator of this
package. A sequence has all patches; those that are not kept are no keys of any attention and part of no pooling, so
that the others come out as from packed tokens of the kept patches. ``kept`` is bool ``[B, S]``, prefix tokens included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import Block, CrossAttention, CrossBlock
from .pool import AttentionPool


def kept_tokens(keep: Tensor, num_prefix: int) -> Tensor:  # [B, gh, gw] bool -> [B, num_prefix + P] bool
    """Which tokens count, of the patches that are kept; all, in an image that keeps none."""
    keep = keep.flatten(1)
    keep = keep | ~keep.any(dim=1, keepdim=True)
    return torch.cat([keep.new_ones(keep.shape[0], num_prefix), keep], dim=1)


def run_block(block: Block, x: Tensor, kept: Tensor | None = None) -> Tensor:  # [B, S, D]
    """:meth:`.Block.forward` of dense tokens."""
    qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1))  # [B, S, 3, H, Dh]
    x = x + block.ls1(block.attn.proj(_attention(*qkv.unbind(2), kept)))
    return x + block.ls2(_mlp(block, x))


def run_cross_block(
    block: CrossBlock,
    x: Tensor,  # [B, Q, D]
    y: Tensor,  # [B, S, D]
    kept: Tensor | None = None,
) -> Tensor:
    """:meth:`.CrossBlock.forward` of dense tokens."""
    x = x + _cross_attention(block.cross_attn, block.norm1(x), y, kept)
    return x + _mlp(block, x)


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
    query = pool.query.expand(x.shape[0], 1, -1)
    return _cross_attention(pool.attn, query, pool.norm(x), kept).squeeze(1)


def _mlp(block: Block | CrossBlock, x: Tensor) -> Tensor:  # [B, S, D]
    return block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


def _cross_attention(
    attn: CrossAttention,
    x: Tensor,  # [B, Q, D]
    y: Tensor,  # [B, S, D]
    kept: Tensor | None,
) -> Tensor:
    q = attn.q(x).unflatten(-1, (attn.num_heads, -1))  # [B, Q, H, Dh]
    k, v = attn.kv(y).unflatten(-1, (2, attn.num_heads, -1)).unbind(2)  # 2 x [B, S, H, Dh]
    return attn.proj(_attention(q, k, v, kept))


def _attention(
    q: Tensor,  # [B, Q, H, Dh]
    k: Tensor,  # [B, S, H, Dh]
    v: Tensor,  # [B, S, H, Dh]
    kept: Tensor | None,
) -> Tensor:  # [B, Q, D]
    counts = None if kept is None else kept[:, None, None]  # [B, 1, 1, S]
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), counts)
    return out.transpose(1, 2).flatten(2)
