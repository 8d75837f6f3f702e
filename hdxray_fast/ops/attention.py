"""Scaled dot-product attention over packed (ragged) or dense tokens: one function, several backends.

Images of one batch keep different numbers of patches, so tokens are packed: sequence ``b`` lies in the rows
``cu_seqlens[b] : cu_seqlens[b + 1]`` of one tensor, as in the variable-length interface of FlashAttention
(https://arxiv.org/abs/2307.08691). Queries and keys may have different lengths (cross-attention), and a sequence may be
empty.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, BackendError

BACKENDS = ("auto", "triton", "sdpa", "reference")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LSE_CHUNK = 256  # query rows whose scores are in memory at once when the log-sum-exp is asked for


def attention(
    q: Tensor,  # [N, H, D] packed, or [B, S, H, D] dense
    k: Tensor,  # [Nk, H, D] or [B, Sk, H, D]
    v: Tensor,  # as k
    *,
    cu_seqlens_q: Tensor | None = None,  # [B + 1] int32
    cu_seqlens_k: Tensor | None = None,  # [B + 1] int32
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``softmax(scale * q @ k^T) @ v`` for every head of every sequence.

    Args:
        q: queries, packed ``[N, H, D]`` (with ``cu_seqlens_q``) or dense ``[B, S, H, D]`` (without);
            float32, float64, float16 or bfloat16, any strides.
        k: keys ``[Nk, H, D]`` or ``[B, Sk, H, D]``; dtype, device, heads and head dimension of ``q``.
        v: values, shape of ``k``.
        cu_seqlens_q: first row of each query sequence and the total, int32 ``[B + 1]`` on the device of ``q``.
        cu_seqlens_k: the same for keys; left out, that of the queries (self-attention).
        max_seqlen_q: longest query sequence, for backends that size their launch by it; never needed on CPU.
        max_seqlen_k: longest key sequence.
        scale: factor on the scores; left out, ``D ** -0.5``.
        backend: ``"sdpa"`` (PyTorch, one call per sequence, one for all if they are equally long), ``"reference"``
            (plain softmax in at least float32), ``"triton"``, or ``"auto"``.
        return_lse: return the log-sum-exp of the scaled scores as well (no gradient flows through it).

    Returns:
        The output in layout and dtype of ``q``; with ``return_lse`` also float32 ``[H, N]`` (packed) or ``[B, H, S]``
        (dense). A query without any key gives zeros and a log-sum-exp of ``-inf``.

    Raises:
        ArgumentTypeError: an argument is not a tensor, or has a dtype that is not accepted.
        ArgumentError: shapes, devices or ``cu_seqlens`` do not fit together.
        BackendError: the backend asked for is not available.
    """
    if cu_seqlens_q is not None and cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens_q
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k)
    _check_max_seqlen("max_seqlen_q", max_seqlen_q)
    _check_max_seqlen("max_seqlen_k", max_seqlen_k)
    scale = q.shape[-1] ** -0.5 if scale is None else _finite_scale(scale)
    dense = _sdpa if pick_backend(backend, q.device) == "sdpa" else attention_ref

    if cu_seqlens_q is None:
        out = dense(q, k, v, scale)
        return (out, _lse(q, k, scale)) if return_lse else out

    parts = _sequences(q, k, v, _lengths(cu_seqlens_q), _lengths(cu_seqlens_k))
    outs = [dense(*part, scale).flatten(0, 1) for part in parts]  # each [B, S, H, D] -> [B * S, H, D]
    out = outs[0] if len(outs) == 1 else torch.cat(outs)  # [N, H, D]
    if not return_lse:
        return out
    lse = torch.cat([_lse(a, b, scale).transpose(0, 1).flatten(1) for a, b, _ in parts], dim=1)  # [H, N]
    return out, lse


def attention_ref(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The definition, dense ``[B, S, H, D]``, computed in at least float32 and returned in the dtype of ``q``."""
    scores = _scores(q, k, scale)  # [B, H, Sq, Sk]
    if k.shape[1] == 0:
        return torch.zeros_like(q)
    out = scores.softmax(dim=-1) @ v.transpose(1, 2).to(scores.dtype)  # [B, H, Sq, D]
    return out.transpose(1, 2).to(q.dtype)


def pick_backend(backend: str, device: torch.device) -> str:
    """The backend that ``backend`` stands for on ``device``: ``"sdpa"`` or ``"reference"``.

    Raises:
        ArgumentError: unknown name.
        BackendError: ``"triton"``, which has no kernel in this build.
    """
    if backend not in BACKENDS:
        raise ArgumentError(f"backend: got {backend!r}, accepted are {', '.join(map(repr, BACKENDS))}")
    if backend == "triton":
        raise BackendError(
            f"backend='triton': this build has no Triton attention kernel (that needs a GPU build); the tensors are on "
            f"{device}; use backend='auto' or 'sdpa'"
        )
    return "sdpa" if backend == "auto" else backend


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    if k.shape[1] == 0 or q.numel() == 0:  # PyTorch's kernels differ in what they make of empty tensors
        return q if q.numel() == 0 else torch.zeros_like(q)
    # [B, S, H, D] -> [B, H, S, D] and back: views, the kernels read strides
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale)
    return out.transpose(1, 2)


def _sequences(
    q: Tensor, k: Tensor, v: Tensor, lengths_q: list[int], lengths_k: list[int]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Packed tensors as dense ones: the whole batch if it is a rectangle, otherwise one triple per sequence."""
    batch = len(lengths_q)
    if batch == 0:
        return [(q[None], k[None], v[None])]
    if len(set(lengths_q)) == 1 and len(set(lengths_k)) == 1 and lengths_q[0] and lengths_k[0]:
        return [(q.unflatten(0, (batch, -1)), k.unflatten(0, (batch, -1)), v.unflatten(0, (batch, -1)))]
    split = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
    return [(a[None], b[None], c[None]) for a, b, c in split]


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    return (q.transpose(1, 2).to(dtype) @ k.permute(0, 2, 3, 1).to(dtype)) * scale  # [B, H, Sq, Sk]


@torch.no_grad()
def _lse(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Log-sum-exp of the scores, float32 ``[B, H, Sq]``; a few query rows at a time, because it builds the scores."""
    chunks = [torch.logsumexp(_scores(rows, k, scale), dim=-1) for rows in q.split(_LSE_CHUNK, dim=1)]
    return torch.cat(chunks, dim=-1).float()


def _lengths(cu_seqlens: Tensor) -> list[int]:
    bounds = cu_seqlens.tolist()
    return [end - start for start, end in pairwise(bounds)]


def _check(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(f"{name}: got {type(tensor).__name__}, accepted is a torch.Tensor")
        if tensor.dtype not in _DTYPES:
            raise ArgumentTypeError(
                f"{name}: got dtype {tensor.dtype}, accepted are float32, float64, float16, bfloat16"
            )
    packed = cu_seqlens_q is not None
    if not packed and cu_seqlens_k is not None:
        raise ArgumentError(
            "cu_seqlens_q: got None while cu_seqlens_k is given; packed tensors need both or only the former"
        )
    layout = "[N, H, D] (packed, cu_seqlens_q is given)" if packed else "[B, S, H, D] (dense, no cu_seqlens_q)"
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != (3 if packed else 4):
            raise ArgumentError(f"{name}: got shape {list(tensor.shape)}, accepted is {layout}")
        if tensor.shape[-1] == 0 or tensor.shape[-2] == 0:
            raise ArgumentError(
                f"{name}: got shape {list(tensor.shape)}, heads H and head dimension D must be at least 1"
            )
        if tensor.dtype != q.dtype:
            raise ArgumentTypeError(f"{name}: got dtype {tensor.dtype}, accepted is the dtype of q, {q.dtype}")
        if tensor.device != q.device:
            raise ArgumentError(f"{name}: is on {tensor.device}, must be on the device of q, {q.device}")
        if tensor.shape[-2:] != q.shape[-2:]:
            raise ArgumentError(
                f"{name}: got {tensor.shape[-2]} heads of dimension {tensor.shape[-1]}, "
                f"q has {q.shape[-2]} heads of dimension {q.shape[-1]}; they must be equal"
            )
        if not packed and tensor.shape[0] != q.shape[0]:
            raise ArgumentError(f"{name}: got batch {tensor.shape[0]}, q has batch {q.shape[0]}; they must be equal")
    if k.shape != v.shape:
        raise ArgumentError(f"v: got shape {list(v.shape)}, accepted is the shape of k, {list(k.shape)}")
    if packed:
        _check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, q.shape[0], q.device)
        _check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, k.shape[0], q.device)
        if cu_seqlens_q.shape != cu_seqlens_k.shape:
            raise ArgumentError(
                f"cu_seqlens_k: got {cu_seqlens_k.shape[0] - 1} sequences, cu_seqlens_q has {cu_seqlens_q.shape[0] - 1}"
            )


def _check_cu_seqlens(name: str, cu_seqlens: Tensor, rows: int, device: torch.device) -> None:
    if not isinstance(cu_seqlens, Tensor):
        raise ArgumentTypeError(f"{name}: got {type(cu_seqlens).__name__}, accepted is an int32 torch.Tensor [B + 1]")
    if cu_seqlens.dtype != torch.int32:
        raise ArgumentTypeError(f"{name}: got dtype {cu_seqlens.dtype}, accepted is int32")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ArgumentError(f"{name}: got shape {list(cu_seqlens.shape)}, accepted is [B + 1]")
    if cu_seqlens.device != device:
        raise ArgumentError(f"{name}: is on {cu_seqlens.device}, must be on the device of q, {device}")
    if device.type != "cpu":  # looking at the values would stall the device
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != rows or any(a > b for a, b in pairwise(bounds)):
        raise ArgumentError(f"{name}: must rise from 0 to the number of rows, {rows}; got {_short(bounds)}")


def _finite_scale(scale: object) -> float:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise ArgumentTypeError(f"scale: got {type(scale).__name__}, accepted is a number")
    if not math.isfinite(scale):
        raise ArgumentError(f"scale: got {scale}, accepted is a finite number")
    return float(scale)


def _check_max_seqlen(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ArgumentError(f"{name}: got {value!r}, accepted is an int of at least 0, or None")


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:6]))}, ..., {values[-1]}]"
