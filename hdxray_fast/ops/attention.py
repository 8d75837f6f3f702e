"""Scaled dot-product attention over packed (ragged) or dense tokens: one function, several backends.

Images of one batch keep different numbers of patches, so tokens are packed: sequence ``b`` lies in the rows
``cu_seqlens[b] : cu_seqlens[b + 1]`` of one tensor, as in the variable-length interface of FlashAttention
(https://arxiv.org/abs/2307.08691). Queries and keys may have different lengths (cross-attention), and a sequence may be
empty. On a GPU nothing here waits for the lengths, and rows behind the last sequence (a plan's slack) give zeros.
"""

from __future__ import annotations

import functools
import operator

import torch
from torch import Tensor

from ..errors import ArgumentError, BackendError
from . import attention_table, attention_torch, autocast, flops
from .attention_checks import (
    check_dtype,
    check_flag,
    check_lengths,
    check_max_seqlen,
    check_of_forward,
    check_operator,
    check_tensors,
    check_values,
    finite_scale,
)
from .attention_torch import reference as attention_ref
from .compiling import constant_result

__all__ = ["BACKENDS", "attention", "attention_ref", "resolve_backend", "why_not_triton"]

BACKENDS = ("auto", "triton", "sdpa", "flash", "cudnn", "efficient", "varlen", "reference")
TRITON_HEAD_DIMS = (32, 64, 80, 96, 128)
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_HEADS = 65535  # the second dimension of a CUDA grid


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
    equal_lengths: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``softmax(scale * q @ k^T) @ v`` for every head of every sequence.

    Under autocast, q, k and v are cast to its dtype first, as PyTorch does for its own attention. Products of float32
    tensors are exact on the Triton kernels unless ``torch.backends.cuda.matmul.fp32_precision`` is ``"tf32"``.

    Args:
        q: queries, packed ``[N, H, D]`` (with ``cu_seqlens_q``) or dense ``[B, S, H, D]`` (without);
            float32, float64, float16 or bfloat16, any strides (Triton copies those whose last is not 1).
        k: keys ``[Nk, H, D]`` or ``[B, Sk, H, D]``; dtype, device, heads and head dimension of ``q``.
        v: values, shape of ``k``.
        cu_seqlens_q: first row of each query sequence and the total, int32 ``[B + 1]`` on the device of ``q``. The
            total may be less than N: the rows behind it give zeros.
        cu_seqlens_k: the same for keys; left out, that of the queries (self-attention).
        max_seqlen_q: longest query sequence or an upper bound, for backends that size their launch by it: ``"varlen"``
            and padded ``"sdpa"``, ``"efficient"``, ``"cudnn"`` on a GPU, which then do not wait for the device. Never
            needed on the CPU, and by ``"triton"`` only to choose a configuration.
        max_seqlen_k: longest key sequence or an upper bound.
        scale: factor on the scores; left out, ``D ** -0.5``.
        backend: ``"triton"`` (this package's kernels; D of 32, 64, 80, 96 or 128, not float64), ``"sdpa"`` (PyTorch,
            whichever kernel it takes), ``"flash"``, ``"cudnn"``, ``"efficient"`` (PyTorch, held to that kernel),
            ``"varlen"`` (PyTorch's variable-length FlashAttention), ``"reference"`` (plain softmax in at least
            float32), or ``"auto"``: the fastest of them as measured on this device, see :func:`resolve_backend`.
        return_lse: return the log-sum-exp of the scaled scores as well (no gradient flows through it).
        equal_lengths: whether it is known that each packed sequence has exactly ``N / B`` queries and ``Nk / B`` keys,
            no row being left over. ``"auto"`` then takes a kernel for dense tensors where that was measured to be the
            faster one. Sizes cannot tell it: rows of B ragged sequences and of slack may be B times ``max_seqlen``.

    Returns:
        The output in layout and dtype of ``q``; with ``return_lse`` also float32 ``[H, N]`` (packed) or ``[B, H, S]``
        (dense). A query without any key gives zeros and a log-sum-exp of ``-inf``.

    Raises:
        ArgumentTypeError: an argument is not a tensor, or has a dtype that is not accepted.
        ArgumentError: shapes, devices, ``cu_seqlens`` or ``equal_lengths`` do not fit together (the values of
            ``cu_seqlens`` on a GPU are looked at under :class:`hdxray_fast.debug_checks` only; whatever they are,
            nothing outside the tensors is touched by ``"triton"``).
        BackendError: the backend asked for is not available, or does not take these tensors.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_dtype(name, tensor)
    q, k, v = autocast.cast(q, k, v)
    packed = cu_seqlens_q is not None
    if packed and cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens_q
    check_tensors(q, k, v, cu_seqlens_q, cu_seqlens_k)
    check_max_seqlen("max_seqlen_q", max_seqlen_q)
    check_max_seqlen("max_seqlen_k", max_seqlen_k)
    check_flag("return_lse", return_lse)
    longest_q, longest_k = (max_seqlen_q or 0, max_seqlen_k or 0) if packed else (q.shape[1], k.shape[1])
    compiling = torch.compiler.is_compiling()
    if not compiling:  # looking at its type binds the compiler of some versions of PyTorch to its value
        check_flag("equal_lengths", equal_lengths)
    if packed and not compiling:  # compiled, the operator below looks at them
        check_values(cu_seqlens_q, cu_seqlens_k, q.shape[0], k.shape[0], longest_q, longest_k, equal_lengths)
    usual_scale = operator.index(q.shape[-1]) ** -0.5  # a compiler may hold sizes as symbols; a graph has one D
    scale = usual_scale if scale is None else finite_scale(scale)
    longest, training = max(longest_q, longest_k), _trains(q, k, v)
    # equal_lengths comes last: a compiler is bound to it only where it decides something
    dense = faster_dense(q, longest, training, scale == usual_scale) if packed and backend == "auto" else ""
    if dense and equal_lengths and cu_seqlens_q.shape[0] > 1:
        return _equally_long(q, k, v, cu_seqlens_q.shape[0] - 1, scale, dense, return_lse)
    backend = resolve_backend(backend, q, packed, longest, training, scale == usual_scale)

    if backend == "triton":
        rows = (q, k, v) if packed else (t.flatten(0, 1) for t in (q, k, v))  # [B, S, H, D] -> [B * S, H, D]
        out, lse = _attention_op(*rows, cu_seqlens_q, cu_seqlens_k, longest_q, longest_k, scale, backend, return_lse)
        out, lse = out.view(q.shape), lse.detach()
        if not packed:
            lse = lse.unflatten(1, q.shape[:2]).transpose(0, 1)  # [H, B * S] -> [B, H, S]
    elif not packed:
        out = attention_torch.dense(q, k, v, scale, backend)
        lse = attention_torch.lse_dense(q, k, scale) if return_lse else None
    else:
        sides = (cu_seqlens_q, cu_seqlens_k, longest_q, longest_k)
        looks = _looks_at_values(backend, q.device.type, longest_q and longest_k, return_lse)
        if (torch.compiler.is_compiling() and looks) or q.is_meta:  # neither has values to look at
            out, lse = _attention_op(q, k, v, *sides, scale, backend, return_lse)
            lse = lse.detach()
        else:
            out = attention_torch.packed(q, k, v, *sides, scale, backend)
            lse = attention_torch.lse_packed(q, k, *sides, scale) if return_lse else None
    return (out, lse) if return_lse else out


def _equally_long(
    q: Tensor, k: Tensor, v: Tensor, batch: int, scale: float, backend: str, return_lse: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Packed tensors whose rows are those of dense ones, by a backend for these."""
    q, k, v = (t.unflatten(0, (batch, t.shape[0] // batch)) for t in (q, k, v))  # [N, H, D] -> [B, S, H, D]
    out = attention_torch.dense(q, k, v, scale, backend).flatten(0, 1)
    if not return_lse:
        return out
    return out, attention_torch.lse_dense(q, k, scale).transpose(0, 1).flatten(1)  # [B, H, S] -> [H, B * S]


# --- backends ---------------------------------------------------------------------------------------------------------
def resolve_backend(
    backend: str, q: Tensor, packed: bool, longest: int, training: bool, usual_scale: bool = True
) -> str:
    """The backend that ``backend`` stands for.

    ``"auto"`` is ``"sdpa"`` on the CPU. On a GPU it is the backend measured to be fastest for the shape class
    (attention_table.py), on a GPU that was not measured ``"triton"`` for packed and ``"sdpa"`` for dense tensors; and
    ``"sdpa"`` wherever the kernel chosen cannot take the tensors.

    Args:
        backend: one of BACKENDS.
        q: the queries.
        packed: whether ``cu_seqlens`` are given.
        longest: longest sequence of queries or keys; 0 if that is not known.
        training: whether a backward pass follows.
        usual_scale: whether scores are scaled by ``D ** -0.5``.

    Raises:
        ArgumentError: unknown name.
        BackendError: the backend named cannot take such tensors, or is not there.
    """
    if backend not in BACKENDS:
        raise ArgumentError(f"backend: got {backend!r}, accepted are {', '.join(map(repr, BACKENDS))}")
    if backend in ("sdpa", "reference") or (backend == "auto" and q.device.type != "cuda"):
        return "sdpa" if backend == "auto" else backend
    kind = _kind(q, packed, usual_scale)
    if backend == "auto":
        return _fastest(kind, _length_class(q, longest), training)
    reason = _why_not(backend, kind)
    if reason:
        raise BackendError(f"backend={backend!r}: {reason}; use backend='auto' or 'sdpa'")
    return backend


def faster_dense(q: Tensor, longest: int, training: bool, usual_scale: bool = True) -> str:
    """What ``"auto"`` takes for packed sequences that are known to be equally long, if that is no packed kernel.

    It is the backend measured to be fastest for dense tensors of the shape class, where that is another one than
    ``"triton"`` (whose packed and dense kernels are the same): it has beaten Triton's, and FlashAttention, which is
    ``"varlen"`` for dense tensors. Empty on a device that was not measured, on the CPU, where equally long sequences
    are one call anyway, and under ``torch.use_deterministic_algorithms``, which not all dense kernels obey.

    Args:
        q: the queries, packed; the others as for :func:`resolve_backend`.
    """
    if q.device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return ""
    return _faster_dense(_kind(q, False, usual_scale), _length_class(q, longest), training)


# What a choice of backend looks at: packed, device type, device index, dtype, heads, head dimension, usual scale.
# Plain values alone: a compiler calls the functions that take them while it traces, and keeps what they answer.
Kind = tuple[bool, str, int, torch.dtype, int, int, bool]


def _kind(q: Tensor, packed: bool, usual_scale: bool) -> Kind:
    return (packed, q.device.type, q.device.index or 0, q.dtype, *map(operator.index, q.shape[-2:]), usual_scale)


def _length_class(q: Tensor, longest: int) -> int:
    """One number for all short sequences and one for all long ones, so that a compiler is bound to no more."""
    return attention_table.SHORT if (longest or q.shape[0]) <= attention_table.SHORT else attention_table.SHORT + 1


@constant_result
def _fastest(kind: Kind, longest: int, training: bool) -> str:
    """``"auto"`` on a GPU."""
    packed, _, index, dtype, _, head_dim, _ = kind
    layout = "packed" if packed else "dense"
    choices = _measured(index)
    measured = attention_table.shape_class(layout, head_dim, dtype, longest, training)
    chosen = choices.get(measured, attention_table.DEFAULTS[layout])
    return "sdpa" if _why_not(chosen, kind) else chosen


@constant_result
def _faster_dense(kind: Kind, longest: int, training: bool) -> str:
    _, _, index, dtype, _, head_dim, _ = kind
    chosen = _measured(index).get(attention_table.shape_class("dense", head_dim, dtype, longest, training), "triton")
    return "" if chosen == "triton" or _why_not(chosen, kind) else chosen


@constant_result
def _why_not(backend: str, kind: Kind) -> str:
    packed, device_type, index, dtype, heads, head_dim, usual_scale = kind
    if backend == "sdpa":
        return ""
    if backend != "triton":
        return attention_torch.why_not(backend, packed, device_type, dtype, head_dim, usual_scale)
    if dtype not in TRITON_DTYPES:
        return f"its kernels take float32, float16 and bfloat16, these are {str(dtype).removeprefix('torch.')}"
    if head_dim not in TRITON_HEAD_DIMS:
        return f"its kernels take head dimensions {', '.join(map(str, TRITON_HEAD_DIMS))}, these have {head_dim}"
    if heads > _MAX_HEADS:
        return f"its kernels take at most {_MAX_HEADS} heads, these have {heads}"
    return why_not_triton(device_type, index)


@constant_result
def why_not_triton(device_type: str, index: int | None = None) -> str:
    """Why the Triton kernels cannot run on a device, in words; empty if they can."""
    return _why_not_triton(device_type, index or 0)


@functools.cache
def _why_not_triton(device_type: str, index: int) -> str:
    try:
        from .triton import attention as kernels
        from .triton.configs import arch_of
    except ImportError as error:
        return f"Triton cannot be imported ({error}); it comes with CUDA builds of PyTorch for Linux"
    if kernels.INTERPRETED:
        return "" if device_type in ("cpu", "cuda") else f"Triton's interpreter takes no tensors on {device_type}"
    if device_type != "cuda":
        return (
            f"its kernels need a CUDA GPU, the tensors are on {device_type} (TRITON_INTERPRET=1, set before Triton is "
            "imported, runs them very slowly on the CPU)"
        )
    capability = torch.cuda.get_device_capability(index)
    if arch_of(capability) is None:
        return f"its kernels need compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return ""


def _measured(index: int) -> dict[str, str]:
    return attention_table.measured(torch.cuda.get_device_name(index))


def _looks_at_values(backend: str, device_type: str, bounded: int, return_lse: bool) -> bool:
    """Whether the PyTorch path of packed tensors reads lengths on the host, which a compiled graph cannot hold."""
    if device_type == "cpu" or backend == "reference":
        return True
    return not bounded and (backend != "varlen" or return_lse)


def _trains(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)


# --- registration -----------------------------------------------------------------------------------------------------
# Packed rows only; without cu_seqlens the sequences have max_seqlen_q and max_seqlen_k rows each. A max_seqlen of 0
# with cu_seqlens is none. The log-sum-exp is [H, N], or [0, 0] where nobody needs it.
_SIDES = "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k"


def _checked_sides(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, backend):
    """What the operators were given of lengths, once everything fits together and the backend takes it."""
    check_operator(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    if backend not in BACKENDS or backend == "auto":
        raise ArgumentError(f"backend: got {backend!r}, accepted are {', '.join(map(repr, BACKENDS[1:]))}")
    if backend not in ("sdpa", "reference"):
        reason = _why_not(backend, _kind(q, True, scale == q.shape[-1] ** -0.5))
        if reason:
            raise BackendError(f"backend={backend!r}: {reason}; use backend='sdpa'")
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return *check_lengths(q, k, *lengths, backend == "triton"), max_seqlen_q, max_seqlen_k


@torch.library.custom_op(
    "hdxray_fast::attention",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {_SIDES}, float scale, str backend, bool with_lse) -> (Tensor, Tensor)",
)
def _attention_op(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, backend, with_lse):
    sides = _checked_sides(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, backend)
    if backend == "triton":
        from .triton import attention as kernels

        return kernels.forward(q, k, v, *sides, scale)
    out = attention_torch.packed(q, k, v, *sides, scale, backend)
    lse = attention_torch.lse_packed(q, k, *sides, scale) if with_lse else q.new_empty(0, 0, dtype=torch.float32)
    # an operator's outputs are contiguous, and none of its inputs
    return out.clone(memory_format=torch.contiguous_format), lse.contiguous()


@_attention_op.register_fake
def _(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, backend, with_lse):
    check_operator(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    shape = (q.shape[1], q.shape[0]) if with_lse or backend == "triton" else (0, 0)
    return q.new_empty(q.shape), q.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op(
    "hdxray_fast::attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_SIDES}, float scale, "
    "str backend) -> (Tensor, Tensor, Tensor)",
)
def _attention_backward_op(
    grad_out, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, backend
):
    sides = _checked_sides(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, backend)
    check_of_forward(grad_out, out, lse, q, backend == "triton")
    if backend == "triton":
        from .triton import attention as kernels

        return kernels.backward(grad_out, q, k, v, out, lse, *sides, scale)
    with autocast.off(q.device.type):
        return attention_torch.packed_backward(grad_out, q, k, v, *sides[:2], scale)


@_attention_backward_op.register_fake
def _(grad_out, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, backend):
    check_operator(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    check_of_forward(grad_out, out, lse, q, backend == "triton")
    return tuple(t.new_empty(t.shape) for t in (q, k, v))


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, ctx.max_seqlen_q, ctx.max_seqlen_k, ctx.scale, ctx.backend, _ = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k)
    ctx.set_materialize_grads(False)  # the log-sum-exp has none


def _backward(ctx, grad_out, grad_lse):
    grads = (None, None, None)
    if grad_out is not None:
        sides = (ctx.max_seqlen_q, ctx.max_seqlen_k, ctx.scale, ctx.backend)
        grads = _attention_backward_op(grad_out, *ctx.saved_tensors, *sides)
    return (*grads, None, None, None, None, None, None, None)


_attention_op.register_autograd(_backward, setup_context=_setup_context)
_library = torch.library.Library("hdxray_fast", "FRAGMENT")


def _register_autocast(device_type: str, key: str) -> None:
    """As attention() itself does: to the dtype of the autocast in force (register_autocast knows one dtype only)."""

    def cast(_, q, k, v, *rest):
        q, k, v = autocast.cast(q, k, v)
        with torch.autocast(device_type, enabled=False):
            return _attention_op(q, k, v, *rest)

    _library.impl("attention", cast, key, with_keyset=True)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
flops.count_attention(torch.ops.hdxray_fast.attention, torch.ops.hdxray_fast.attention_backward)
