"""Attention on PyTorch's own kernels: dense tensors as they are, packed ones by sequence (CPU) or padded (GPU).

Everything here is made of differentiable PyTorch operations, so PyTorch's autograd does the backward pass.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BackendError
from . import autocast
from .compiling import constant_result

_CHUNK = 256  # query rows whose scores are in memory at once where a log-sum-exp or a gradient builds them
_PAD_TO = 16  # padded keys are a multiple of this, so that rows of the mask are aligned as the kernels want them
_HALF = (torch.float16, torch.bfloat16)
_KERNELS = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}


def why_not(backend: str, packed: bool, device_type: str, dtype: torch.dtype, head_dim: int, usual_scale: bool) -> str:
    """Why ``"flash"``, ``"cudnn"``, ``"efficient"`` or ``"varlen"`` cannot take such tensors; empty if they can."""
    if device_type != "cuda":
        return f"it takes CUDA tensors, these are on {device_type}"
    if backend == "varlen" and not packed:
        return "it takes packed tensors, these are dense"
    if backend == "varlen" and not varlen_parameters():
        return f"PyTorch {torch.__version__} does not have it"
    if backend == "varlen" and not usual_scale and "scale" not in varlen_parameters():
        return f"that of PyTorch {torch.__version__} takes no scale but D ** -0.5"
    if backend == "flash" and packed:
        return "it takes dense tensors, these are packed; the kernel for those is 'varlen'"
    if backend != "efficient" and dtype not in _HALF:
        return f"it takes float16 and bfloat16, these are {str(dtype).removeprefix('torch.')}"
    if backend == "varlen" and (head_dim % 8 or head_dim > 256):  # dense FlashAttention pads by itself
        return f"it takes head dimensions that are multiples of 8 up to 256, these have {head_dim}"
    return ""


@functools.cache
def varlen_parameters() -> tuple[str, ...]:
    """Names of what PyTorch's ``varlen_attn`` takes; none without it. They differ: 2.10's has no ``scale``."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return ()
    return tuple(inspect.signature(varlen_attn).parameters)


@constant_result
def _varlen_takes_scale() -> bool:
    return "scale" in varlen_parameters()


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The definition, dense ``[B, S, H, D]``, computed in at least float32 and returned in the dtype of ``q``."""
    if k.shape[1] == 0:
        return _no_keys(q, k, v)
    with autocast.off(q.device.type):
        scores = _scores(q, k, scale)  # [B, H, Sq, Sk]
        out = scores.softmax(dim=-1) @ v.transpose(1, 2).to(scores.dtype)  # [B, H, Sq, D]
    return out.transpose(1, 2).to(q.dtype)


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str, mask: Tensor | None = None) -> Tensor:
    """``[B, S, H, D]`` by the backend that is named; ``mask`` is bool, True where a key counts, ``[B, 1, 1, Sk]``."""
    if backend == "reference" and mask is None:
        return reference(q, k, v, scale)
    if k.shape[1] == 0 or q.numel() == 0:  # PyTorch's kernels differ in what they make of empty tensors
        return _no_keys(q, k, v)
    with _held_to(backend):
        # [B, S, H, D] -> [B, H, S, D] and back: views, the kernels read strides
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale=scale)
    return out.transpose(1, 2)


def packed(
    q: Tensor,  # [N, H, D]
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,  # 0: unknown
    max_seqlen_k: int,
    scale: float,
    backend: str,
) -> Tensor:
    """Packed sequences. Rows behind the last one (slack) give zeros and have zero gradients.

    On the CPU and for ``"reference"`` one call per sequence, or one for all if they are equally long. Otherwise the
    sequences are padded to the longest and the padding masked, without waiting for the device if ``max_seqlen`` is
    known; unknown, it has to be looked up there.
    """
    if backend == "varlen":
        return _varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale)
    if q.device.type == "cpu" or backend == "reference":
        parts = sequences(q, k, v, _lengths(cu_seqlens_q), _lengths(cu_seqlens_k))
        outs = [dense(*part, scale, backend).flatten(0, 1) for part in parts]  # each [B, S, H, D] -> [B * S, H, D]
        rows = sum(out.shape[0] for out in outs)
        outs += [torch.zeros_like(q[rows:])] if rows < q.shape[0] else []
        return outs[0] if len(outs) == 1 else torch.cat(outs)  # [N, H, D]
    return padded(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, backend)


def padded(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float, backend: str
) -> Tensor:
    """As :func:`packed`, in one call on padded tensors with a mask."""
    if q.shape[0] == 0 or k.shape[0] == 0 or cu_q.shape[0] == 1:
        return _no_keys(q, k, v)
    tensors, mask, slots, answered = _pad(q, k, v, cu_q, cu_k, max_q, max_k)
    out = dense(*tensors, scale, backend, mask).flatten(0, 1).index_select(0, slots)
    return torch.where(answered[:, None, None], out, 0)


@torch.no_grad()
def lse_dense(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Log-sum-exp of the scores, float32 ``[B, H, Sq]``; a few query rows at a time, because it builds the scores."""

    def chunk(rows: Tensor) -> Tensor:
        scores = _scores(rows, k, scale)
        return torch.logsumexp(scores if mask is None else scores.masked_fill(~mask, -torch.inf), dim=-1)

    with autocast.off(q.device.type):
        return torch.cat([chunk(rows) for rows in q.split(_CHUNK, dim=1)], dim=-1).float()


@torch.no_grad()
def lse_packed(
    q: Tensor, k: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_q: int, max_k: int, scale: float
) -> Tensor:
    """Log-sum-exp of packed sequences, float32 ``[H, N]``; ``-inf`` for slack and for queries without keys."""
    if q.device.type != "cpu" and q.shape[0] and k.shape[0] and cu_seqlens_q.shape[0] > 1:
        (q_padded, k_padded, _), mask, slots, answered = _pad(q, k, k, cu_seqlens_q, cu_seqlens_k, max_q, max_k)
        lse = lse_dense(q_padded, k_padded, scale, mask).transpose(0, 1).flatten(1)  # [B, H, S] -> [H, B * S]
        return lse.index_select(1, slots).masked_fill(~answered, -torch.inf)
    parts = sequences(q, k, k, _lengths(cu_seqlens_q), _lengths(cu_seqlens_k))
    known = torch.cat([lse_dense(a, b, scale).transpose(0, 1).flatten(1) for a, b, _ in parts], dim=1)  # [H, rows]
    return F.pad(known, (0, q.shape[0] - known.shape[1]), value=-torch.inf)


@torch.no_grad()
def packed_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v of packed attention, written out, for the operator (no graph is recorded inside of one).

    A few query rows at a time, in at least float32. With P = softmax(scale Q K^T) and dP = dO V^T:
    dS = scale P * (dP - rowsum(P * dP)), dQ = dS K, dK = dS^T Q, dV = P^T dO.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = (torch.zeros(t.shape, dtype=dtype, device=t.device) for t in (q, k, v))
    bounds = zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True)
    for (start, end), (start_k, end_k) in bounds:
        keys, values = (t[start_k:end_k].transpose(0, 1).to(dtype) for t in (k, v))  # [H, Sk, D]
        for first in range(start, end, _CHUNK) if end_k > start_k else ():
            rows = slice(first, min(first + _CHUNK, end))
            queries, grads = (t[rows].transpose(0, 1).to(dtype) for t in (q, grad_out))  # [H, chunk, D]
            p = (queries @ keys.mT * scale).softmax(-1)
            dp = grads @ values.mT
            ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
            dq[rows] = (ds @ keys).transpose(0, 1)
            dk[start_k:end_k] += (ds.mT @ queries).transpose(0, 1)
            dv[start_k:end_k] += (p.mT @ grads).transpose(0, 1)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def sequences(
    q: Tensor, k: Tensor, v: Tensor, lengths_q: list[int], lengths_k: list[int]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Packed tensors as dense ones: the whole batch if it is a rectangle, otherwise one triple per sequence."""
    batch = len(lengths_q)
    q, k, v = _first(q, sum(lengths_q)), _first(k, sum(lengths_k)), _first(v, sum(lengths_k))
    if batch == 0:
        return [(q[None], k[None], v[None])]
    if len(set(lengths_q)) == 1 and len(set(lengths_k)) == 1 and lengths_q[0] and lengths_k[0]:
        return [(q.unflatten(0, (batch, -1)), k.unflatten(0, (batch, -1)), v.unflatten(0, (batch, -1)))]
    split = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
    return [(a[None], b[None], c[None]) for a, b, c in split]


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if q.shape[0] == 0 or k.shape[0] == 0 or cu_q.shape[0] == 1:
        return _no_keys(q, k, v)
    # it leaves slack as it finds it, in the output and in the gradients: both go through a mask of the real rows
    real_q, real_k = (
        (torch.arange(t.shape[0], device=t.device) < cu[-1])[:, None, None] for t, cu in ((q, cu_q), (k, cu_k))
    )
    q, k, v = torch.where(real_q, q, 0), torch.where(real_k, k, 0), torch.where(real_k, v, 0)
    # unknown lengths are at most all rows: that starts programs with nothing to do, and waits for nothing
    options = {"scale": scale} if _varlen_takes_scale() else {}  # without: resolve_backend saw to the usual scale
    out = varlen_attn(q, k, v, cu_q, cu_k, max_q or q.shape[0], max_k or k.shape[0], **options)
    return torch.where(real_q, out, 0)


def _pad(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor, Tensor]:
    """Packed rows as ``[B, S, H, D]``, zeros behind each sequence.

    Returns:
        The padded tensors; which keys count, bool ``[B, 1, 1, Sk]``; the padded row of each packed query, ``[N]``; and
        whether that query is real and has keys, bool ``[N]``.
    """
    max_q = max_q or max(1, int(cu_q.diff().max()))
    max_k = -(-(max_k or max(1, int(cu_k.diff().max()))) // _PAD_TO) * _PAD_TO
    batch = cu_q.shape[0] - 1

    def pad(t: Tensor, cu: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        places = torch.arange(longest, device=t.device)
        inside = places < cu.diff()[:, None]  # [B, S]
        rows = (cu[:-1, None] + places).clamp(0, t.shape[0] - 1).flatten()
        values = torch.where(inside.flatten()[:, None, None], t.index_select(0, rows), 0)
        return values.unflatten(0, (batch, longest)), inside

    q_padded, _ = pad(q, cu_q, max_q)
    (k_padded, counts), (v_padded, _) = pad(k, cu_k, max_k), pad(v, cu_k, max_k)
    has_keys = counts[:, 0]
    # a row of the mask without any key would give NaN: such queries see one key of zeros, and are zeroed afterwards
    counts = counts | (~has_keys[:, None] & (torch.arange(max_k, device=q.device) == 0))
    rows = torch.arange(q.shape[0], device=q.device, dtype=cu_q.dtype)
    sequence = torch.searchsorted(cu_q[1:], rows, right=True).clamp(max=batch - 1)
    slots = sequence * max_q + (rows - cu_q[sequence]).clamp(0, max_q - 1)
    answered = (rows < cu_q[-1]) & has_keys[sequence]
    return (q_padded, k_padded, v_padded), counts[:, None, None], slots, answered


@contextlib.contextmanager
def _told(backend: str):
    """PyTorch says that no kernel takes the tensors in a way of its own; say it in ours."""
    try:
        yield
    except RuntimeError as error:
        if "No available kernel" in str(error):
            raise BackendError(f"backend={backend!r}: PyTorch has no such kernel for these tensors: {error}") from error
        raise


def _held_to(backend: str):
    if backend not in _KERNELS:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    held = sdpa_kernel(getattr(SDPBackend, _KERNELS[backend]))
    if torch.compiler.is_compiling():
        return held
    stack = contextlib.ExitStack()
    stack.enter_context(_told(backend))
    stack.enter_context(held)
    return stack


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    return (q.transpose(1, 2).to(dtype) @ k.permute(0, 2, 3, 1).to(dtype)) * scale  # [B, H, Sq, Sk]


def _no_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Zeros in the shape of ``q``, in the graph of all three: their gradients are zeros, too, and not missing."""
    return torch.zeros_like(q) + (q[:0].sum() + k[:0].sum() + v[:0].sum())


def _first(rows: Tensor, count: int) -> Tensor:
    return rows if rows.shape[0] == count else rows[:count]


def _lengths(cu_seqlens: Tensor) -> list[int]:
    bounds = cu_seqlens.tolist()
    return [end - start for start, end in pairwise(bounds)]
