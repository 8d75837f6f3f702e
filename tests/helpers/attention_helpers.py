"""What the attention's tests share: packed tensors, and the definition in float64."""

from __future__ import annotations

import torch

from hdxray_fast.ops.attention import attention_ref


def cumulate(lengths: list[int], device: str = "cpu") -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def packed(
    lengths: list[int], heads: int = 3, dim: int = 32, dtype: torch.dtype = torch.float32, slack: int = 0
) -> torch.Tensor:
    """Random rows of all sequences, [N + slack, H, D]."""
    return torch.randn(sum(lengths) + slack, heads, dim).to(dtype).requires_grad_()


def definition(q, k, v, lengths_q, lengths_k, scale=None, dtype=torch.float64) -> torch.Tensor:
    """Attention sequence by sequence, [N, H, D]; rows behind the last sequence are left out."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = q[: sum(lengths_q)].to(dtype), k[: sum(lengths_k)].to(dtype), v[: sum(lengths_k)].to(dtype)
    parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
    return torch.cat([attention_ref(a[None], b[None], c[None], scale)[0] for a, b, c in parts])


def definition_lse(q, k, lengths_q, lengths_k, scale=None) -> torch.Tensor:
    """Log-sum-exp in float64, [H, N]."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    parts = zip(
        q[: sum(lengths_q)].double().split(lengths_q), k[: sum(lengths_k)].double().split(lengths_k), strict=True
    )
    return torch.cat([torch.logsumexp(torch.einsum("qhd,khd->hqk", a, b) * scale, -1) for a, b in parts], dim=1)
