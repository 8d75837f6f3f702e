"""Transformer blocks over packed tokens, shared by encoder and decoders; module names follow facebookresearch/mae."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError
from ..ops.attention import attention
from ..ops.compiling import kept_keys, takes_standard_operations
from .packing import image_of_row
from .plain import is_plain

LAYER_NORM_EPS = 1e-6  # as MAE


class GeluLinear(torch.autograd.Function):
    """``linear(gelu(x))`` that keeps ``x`` for the backward pass and computes the GELU again instead of keeping it too.

    The hidden activations of the MLPs are half of what a block keeps; the second GELU costs about 1 % of a step.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # [N, D_in], [D_out, D_in], [D_out]
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad: Tensor):  # [N, D_out], half precision under autocast
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.aten.gelu_backward((grad @ weight.to(grad.dtype)).to(x.dtype), x)
        if ctx.needs_input_grad[1]:
            grad_weight = grad.t() @ F.gelu(x).to(grad.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_x, grad_weight, grad_bias


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between.

    Attributes:
        drop: dropout after the GELU and after the second layer, where it is wanted (timm's ``proj_drop_rate``).
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:  # [..., D]
        hidden = self.fc1(x)
        if self.drop is not None and self.drop.training:
            return self.drop(self.fc2(self.drop(F.gelu(hidden))))
        # without gradient nothing is kept
        if not torch.is_grad_enabled() or takes_standard_operations() or not is_plain(self.fc2, nn.Linear):
            return self.fc2(F.gelu(hidden))
        out = GeluLinear.apply(hidden.flatten(0, -2), self.fc2.weight, self.fc2.bias)
        return out.view(*x.shape[:-1], self.fc2.out_features)


class Queries(NamedTuple):
    """The rows of packed tokens whose output is wanted, where the others only serve as keys and values."""

    rows: Tensor  # [Nq] int64, grouped by sequence
    cu_seqlens: Tensor  # [B + 1] int32
    max_seqlen: int


class SelfAttention(nn.Module):
    """Multi-head self-attention within each packed sequence, or over a dense batch (without ``cu_seqlens``).

    Attributes:
        proj_drop: dropout of its output, where it is wanted.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        check_heads("num_heads", num_heads, dim)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop: nn.Module | None = None

    def forward(
        self,
        x: Tensor,  # [N, D] packed or [B, S, D] dense
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        queries: Queries | None = None,
        equal_lengths: bool = False,
    ) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [N, 3, H, Dh] or [B, S, 3, H, Dh]
        q, k, v = qkv.unbind(-3)  # 3 x [N, H, Dh] or [B, S, H, Dh]: views, attention reads strides
        if queries is not None:
            q = q.index_select(0, queries.rows)  # [Nq, H, Dh]
        if takes_standard_operations():
            out = _standard_attention(q, k, v)
        else:
            out = attention(
                q,
                k,
                v,
                cu_seqlens_q=cu_seqlens if queries is None else queries.cu_seqlens,
                cu_seqlens_k=cu_seqlens,
                max_seqlen_q=max_seqlen if queries is None else queries.max_seqlen,
                max_seqlen_k=max_seqlen,
                equal_lengths=equal_lengths,
            )
        out = self.proj(out.flatten(-2))  # [..., H, Dh] -> [..., D]
        return out if self.proj_drop is None else self.proj_drop(out)


class CrossAttention(nn.Module):
    """Multi-head attention of decoder queries to encoder tokens of the same image (CrossMAE, section 3)."""

    def __init__(self, encoder_dim: int, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads("decoder_num_heads", num_heads, dim)
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(encoder_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,  # [Nq, D] queries, or under standard_operations [B, Q, D]
        y: Tensor,  # [Nk, encoder_dim] tokens attended to, or [B, S, encoder_dim]
        cu_seqlens_q: Tensor | None = None,  # [B + 1] int32
        cu_seqlens_k: Tensor | None = None,  # [B + 1] int32
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        equal_lengths: bool = False,
    ) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1))  # [Nq, H, Dh]
        k, v = self.kv(y).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)  # [Nk, 2, H, Dh] -> 2 x [Nk, H, Dh]
        if takes_standard_operations():
            out = _standard_attention(q, k, v)
        else:
            out = attention(
                q,
                k,
                v,
                cu_seqlens_q=cu_seqlens_q,
                cu_seqlens_k=cu_seqlens_k,
                max_seqlen_q=max_seqlen_q,
                max_seqlen_k=max_seqlen_k,
                equal_lengths=equal_lengths,
            )
        return self.proj(out.flatten(-2))


def _standard_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # [B, Q, H, Dh], 2 x [B, S, H, Dh]
    """Attention of dense tokens under :func:`.standard_operations`, ``[B, Q, H, Dh]``."""
    kept = kept_keys()
    counts = None if kept is None else kept[:, None, None]  # [B, 1, 1, S]
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), counts).transpose(
        1, 2
    )


class LayerScale(nn.Module):
    """A learned factor per channel (https://arxiv.org/abs/2103.17239)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def drop_path(branch: Tensor, rate: float, cu_seqlens: Tensor | None, keep: Tensor | None = None) -> Tensor:
    """Stochastic depth (https://arxiv.org/abs/1603.09382): whole images lose this branch, the others make up for it.

    Args:
        branch: ``[N, D]`` packed or ``[B, S, D]`` dense.
        rate: share of the images, 0 to below 1.
        cu_seqlens: ``[B + 1]`` int32 of packed rows.
        keep: ``[B]`` bool, images that do not lose it; left out, drawn by torch's generator.
    """
    images = branch.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    factor = branch.new_empty(images)
    factor = factor.bernoulli_(1 - rate) if keep is None else factor.copy_(keep)
    factor = factor.div_(1 - rate)
    if cu_seqlens is None:
        return branch * factor[:, None, None]
    return branch * factor.index_select(0, image_of_row(cu_seqlens, branch.shape[0]))[:, None]


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then MLP.

    Attributes:
        drop_path: share of the images that skip a branch of the block while it trains; no part of the saved model.
    """

    drop_path = 0.0

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SelfAttention(dim, num_heads, qkv_bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(
        self,
        x: Tensor,  # [N, D] packed or [B, S, D] dense
        cu_seqlens: Tensor | None = None,  # [B + 1] int32
        max_seqlen: int | None = None,
        queries: Queries | None = None,
        drop_path_keep: Tensor | None = None,  # [2, B] bool
        equal_lengths: bool = False,
    ) -> Tensor:
        """All rows, or those of ``queries`` alone ``[Nq, D]`` (equal to the same rows of all).

        ``drop_path_keep`` says which images keep either branch while it trains; left out, that is drawn.
        ``equal_lengths`` is what :func:`.attention` calls by this name, of the queries too if there are any.
        """
        rows = cu_seqlens if queries is None else queries.cu_seqlens
        first, second = (None, None) if drop_path_keep is None else drop_path_keep.unbind()
        attended = self.attn(self.norm1(x), cu_seqlens, max_seqlen, queries, equal_lengths)
        attended = self._dropped(self.ls1(attended), rows, first)
        x = (x if queries is None else x.index_select(0, queries.rows)) + attended
        return x + self._dropped(self.ls2(self.mlp(self.norm2(x))), rows, second)

    def _dropped(self, branch: Tensor, cu_seqlens: Tensor | None, keep: Tensor | None) -> Tensor:
        return drop_path(branch, self.drop_path, cu_seqlens, keep) if self.training and self.drop_path else branch


class CrossBlock(nn.Module):
    """Pre-norm block of CrossMAE: cross-attention to encoder tokens, then MLP; queries never see each other."""

    def __init__(self, encoder_dim: int, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.cross_attn = CrossAttention(encoder_dim, dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, y: Tensor, *seqlens: Tensor | int) -> Tensor:  # [Nq, D], [Nk, encoder_dim]
        x = x + self.cross_attn(self.norm1(x), y, *seqlens)
        return x + self.mlp(self.norm2(x))


def init_weights(module: nn.Module) -> None:
    """Initialise as MAE: xavier-uniform linear (and patch-embedding) weights, zero biases, unit norms."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1))  # a patch embedding is a linear layer on the flattened patch
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def check_count(name: str, value: int) -> None:
    """Raise an error naming ``name`` unless ``value`` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name}: got {value!r}, accepted is an int of at least 1")
    if value < 1:
        raise ArgumentError(f"{name}: got {value}, accepted is at least 1")


def check_heads(name: str, num_heads: int, dim: int) -> None:
    """Raise an error naming ``name`` unless ``dim`` splits evenly into ``num_heads``."""
    check_count(name, num_heads)
    if dim % num_heads:
        raise ArgumentError(f"{name}: got {num_heads}, accepted is a divisor of the embedding dimension {dim}")
