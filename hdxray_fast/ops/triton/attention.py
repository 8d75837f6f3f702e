"""Launches of the attention kernels: tensors in, tensors out. Checked arguments only; see ops/attention.py."""

from __future__ import annotations

import contextlib
import contextvars
import functools

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from . import configs
from .backward import dkdv_kernel, dq_kernel
from .configs import Config
from .forward import forward_kernel
from .schedule import CHUNK, schedule_kernel
from .tiles import FIELDS, LOG2E

INTERPRETED = isinstance(forward_kernel, InterpretedFunction)  # TRITON_INTERPRET=1 when this was imported
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_TINY_SCALE = 1e-30  # stands for a scale of 0: kernels multiply masked scores, -inf, by the scale
_FAR_STRIDE = 2**23  # offsets within a tile of 128 rows are 32 bits


def tf32() -> bool:
    """Whether products of float32 tensors may round to TF32: ``torch.backends.cuda.matmul``'s setting, off by default.

    ``torch.backends.cuda.matmul.fp32_precision = "tf32"``, the older ``allow_tf32 = True`` and
    ``torch.set_float32_matmul_precision("high")`` all turn it on, as they do for PyTorch's own products.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def forward(
    q: Tensor,  # [N, H, D] bf16 | fp16 | fp32
    k: Tensor,  # [Nk, H, D]
    v: Tensor,  # [Nk, H, D]
    cu_seqlens_q: Tensor | None,  # [B + 1] int32; None: sequences of max_seqlen_q and max_seqlen_k rows each
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    config: Config | None = None,  # for tuning
) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, D]``, contiguous, and the log-sum-exp of the scaled scores, float32 ``[H, N]``."""
    if _unreadable_here(q):
        out, lse = forward(
            *(t.float() for t in (q, k, v)), cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, config
        )
        return out.to(q.dtype), lse
    rows, heads, head_dim = q.shape
    out = q.new_empty(rows, heads, head_dim)
    lse = q.new_empty(heads, rows, dtype=torch.float32)
    if rows == 0 or k.shape[0] == 0:
        return out.zero_(), lse.fill_(-torch.inf)
    q, scale = _positive_scale(q, scale)
    q, k, v = (_readable(t) for t in (q, k, v))
    longest = _longest(q, k, cu_seqlens_q, max_seqlen_q, max_seqlen_k)
    config = config or _config("forward", q, (k, v), longest)
    with on_device_of(q):
        tiles, schedule, lengths = _schedule(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, config.m)
        _launch(
            forward_kernel, "forward", config, (tiles, heads), q,
            q, k, v, out, lse, schedule,
            *_strides(q), *_strides(k), *_strides(v), *_strides(out), rows, *lengths, scale * LOG2E,
        )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor,  # [N, H, D]
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,  # [N, H, D], contiguous
    lse: Tensor,  # [H, N] float32
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    dq_config: Config | None = None,
    dkdv_config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous. Two runs agree bit for bit: no sum is shared between programs."""
    if _unreadable_here(q):
        floats = (t.float() for t in (grad_out, q, k, v, out))
        sides = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return tuple(t.to(q.dtype) for t in backward(*floats, lse, *sides, scale, dq_config, dkdv_config))
    rows, heads, _ = q.shape
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    if rows == 0 or k.shape[0] == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    negative = scale < 0
    q, scale = _positive_scale(q, scale)
    q, k, v, grad_out = (_readable(t) for t in (q, k, v, grad_out))
    out, lse = out.contiguous(), lse.contiguous()
    delta = torch.empty_like(lse)
    longest = _longest(q, k, cu_seqlens_q, max_seqlen_q, max_seqlen_k)
    dq_config = dq_config or _config("dq", q, (k, v), longest)
    dkdv_config = dkdv_config or _config("dkdv", q, (q, grad_out), longest)
    with on_device_of(q):
        tiles, schedule, lengths = _schedule(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dq_config.m)
        _launch(
            dq_kernel, "dq", dq_config, (tiles, heads), q,
            q, k, v, out, grad_out, lse, delta, dq, schedule,
            *_strides(q), *_strides(k), *_strides(v), *_strides(dq), *_strides(grad_out), rows, *lengths, scale * LOG2E,
        )  # fmt: skip
        tiles, schedule, (length_k, length_q) = _schedule(
            k, q, cu_seqlens_k, cu_seqlens_q, max_seqlen_k, max_seqlen_q, dkdv_config.n
        )
        _launch(
            dkdv_kernel, "dkdv", dkdv_config, (tiles, heads), q,
            q, k, v, grad_out, lse, delta, dk, dv, schedule,
            *_strides(q), *_strides(k), *_strides(v), *_strides(dk), *_strides(grad_out),
            rows, length_q, length_k, scale * LOG2E,
        )  # fmt: skip
    return (-dq if negative else dq), dk, dv


# --- the parts of a launch --------------------------------------------------------------------------------------------
def _schedule(
    own: Tensor,
    other: Tensor,
    cu_own: Tensor | None,
    cu_other: Tensor | None,
    max_own: int,
    max_other: int,
    block: int,
) -> tuple[int, Tensor, tuple[int, int]]:
    """Number of programs a head, the table of where they work, and the equal lengths (0, 0 where they differ)."""
    rows = own.shape[0]
    if cu_own is None:
        unread = torch.empty(FIELDS, dtype=torch.int32, device=own.device)
        return rows // max_own * triton.cdiv(max_own, block), unread, (max_own, max_other)
    batch = cu_own.shape[0] - 1
    tiles = triton.cdiv(rows, block) + batch
    schedule = torch.empty(tiles, FIELDS, dtype=torch.int32, device=own.device)
    schedule_kernel[(batch + 1,)](
        cu_own,
        cu_other,
        schedule,
        batch,
        rows,
        other.shape[0],
        tiles,
        BLOCK=block,
        CHUNK=CHUNK,
        num_warps=1,
        enable_fp_fusion=True,
    )
    return tiles, schedule, (0, 0)


def _unreadable_here(q: Tensor) -> bool:
    """Triton's interpreter keeps bfloat16 as 16-bit integers, and multiplies those: there it is computed in float32."""
    return INTERPRETED and q.dtype == torch.bfloat16


def _launch(kernel, name: str, config: Config, grid: tuple[int, int], q: Tensor, *arguments) -> None:
    precision = "tf32" if _dtype(q) == "tf32" else "ieee"
    run = functools.partial(
        kernel[grid], *arguments, **config.constants(name, q.shape[-1], precision), **config.options()
    )
    if not config.tma:
        run()
        return

    def with_workspace() -> None:
        triton.set_allocator(functools.partial(_workspace, q.device))
        run()

    # tensor descriptors are built in device memory that Triton asks for; in a copied context, so that an allocator
    # that the caller has set stays set
    contextvars.copy_context().run(with_workspace)


def _workspace(device: torch.device, size: int, alignment: int, stream: int | None) -> Tensor:
    """Device memory from PyTorch's allocator, whose blocks are aligned to 512 bytes and follow the current stream."""
    return torch.empty(size, dtype=torch.int8, device=device)


def _config(kernel: str, q: Tensor, streamed: tuple[Tensor, ...], longest: int) -> Config:
    aligned = all(_describable(t) for t in (q, *streamed))
    arch, device_name = _arch(q.device)
    return configs.choose(kernel, q.shape[-1], _dtype(q), arch, device_name, longest, aligned)


def _longest(q: Tensor, k: Tensor, cu_seqlens_q: Tensor | None, max_seqlen_q: int, max_seqlen_k: int) -> int:
    """The longest sequence as the caller has it, or else the average: it only chooses among configurations."""
    sequences = 1 if cu_seqlens_q is None else max(1, cu_seqlens_q.shape[0] - 1)
    return max(max_seqlen_q, max_seqlen_k) or max(q.shape[0], k.shape[0]) // sequences


@functools.cache
def _arch(device: torch.device) -> tuple[str | None, str]:
    if INTERPRETED:
        return "interpreter", ""
    return configs.arch_of(torch.cuda.get_device_capability(device)), torch.cuda.get_device_name(device)


def _dtype(q: Tensor) -> str:
    dtype = DTYPES[q.dtype]
    if dtype != "fp32" or not tf32():
        return dtype
    return configs.computed_dtype("tf32", q.shape[-1], _arch(q.device)[0])


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device; make that the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """Kernels take the maximum of the scores before they scale them, which is right for positive scales."""
    if scale < 0:
        return -q, -scale
    return q, scale or _TINY_SCALE


def _readable(tensor: Tensor) -> Tensor:
    """`tensor`, copied if the kernels cannot read it by its strides: D contiguous, no huge strides."""
    near = all(0 <= stride < _FAR_STRIDE for stride in tensor.stride()[:2])
    return tensor if tensor.stride(-1) == 1 and near else tensor.contiguous()


def _describable(tensor: Tensor) -> bool:
    """Whether a tensor descriptor can be based at any row and head: all of them on 16 bytes."""
    step = 16 // tensor.element_size()
    return tensor.data_ptr() % 16 == 0 and all(s > 0 and s % step == 0 for s in _strides(tensor))


def _strides(tensor: Tensor) -> tuple[int, int]:
    return tensor.stride(0), tensor.stride(1)
