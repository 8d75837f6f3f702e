"""What attention accepts: every argument checked by name before anything is launched."""

from __future__ import annotations

import math
import numbers
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from . import debug

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_tensors(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None) -> None:
    """All but the values of ``cu_seqlens`` on a device that would have to be waited for (see check_values)."""
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
        _check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, q.device)
        _check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, q.device)
        if cu_seqlens_q.shape != cu_seqlens_k.shape:
            raise ArgumentError(
                f"cu_seqlens_k: got {cu_seqlens_k.shape[0] - 1} sequences, cu_seqlens_q has {cu_seqlens_q.shape[0] - 1}"
            )


def check_dtype(name: str, tensor: object) -> None:
    """A tensor of a dtype that attention computes in."""
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(f"{name}: got {type(tensor).__name__}, accepted is a torch.Tensor")
    if tensor.dtype not in DTYPES:
        raise ArgumentTypeError(f"{name}: got dtype {tensor.dtype}, accepted are float32, float64, float16, bfloat16")


def check_values(
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    rows_q: int,
    rows_k: int,
    max_seqlen_q: int,
    max_seqlen_k: int,
    equal_lengths: bool = False,
) -> None:
    """The values of ``cu_seqlens``: always on the CPU, elsewhere (which waits for the device) under ``debug_checks``.

    Rows may be left over behind the last sequence, a plan's slack. A ``max_seqlen`` of 0 stands for none.
    """
    sides = (
        ("cu_seqlens_q", cu_seqlens_q, rows_q, "max_seqlen_q", max_seqlen_q),
        ("cu_seqlens_k", cu_seqlens_k, rows_k, "max_seqlen_k", max_seqlen_k),
    )
    if cu_seqlens_q.device.type != "cpu" and not debug.checks_are_on():
        return
    for name, cu_seqlens, rows, max_name, longest in sides:
        bounds = cu_seqlens.tolist()
        if bounds[0] != 0 or bounds[-1] > rows or any(a > b for a, b in pairwise(bounds)):
            raise ArgumentError(f"{name}: must rise from 0 to at most the number of rows, {rows}; got {_short(bounds)}")
        if longest and any(b - a > longest for a, b in pairwise(bounds)):
            raise ArgumentError(f"{max_name}: got {longest}, but {name} has a longer sequence; got {_short(bounds)}")
        if equal_lengths and (bounds[-1] != rows or len({b - a for a, b in pairwise(bounds)}) > 1):
            raise ArgumentError(
                f"equal_lengths: got True, but {name} has sequences of different lengths or ends before the number of "
                f"rows, {rows}; got {_short(bounds)}"
            )


def finite_scale(scale: object) -> float:
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise ArgumentTypeError(f"scale: got {type(scale).__name__}, accepted is a number")
    if not -math.inf < scale < math.inf:  # not math.isfinite, which torch.compile cannot trace; NaN fails too
        raise ArgumentError(f"scale: got {scale}, accepted is a finite number")
    return float(scale)


def check_max_seqlen(name: str, value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name}: got {type(value).__name__}, accepted is an int of at least 0, or None")
    if value < 0:
        raise ArgumentError(f"{name}: got {value}, accepted is an int of at least 0, or None")


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name}: got {type(value).__name__}, accepted is True or False")


def _check_cu_seqlens(name: str, cu_seqlens: object, device: torch.device) -> None:
    if not isinstance(cu_seqlens, Tensor):
        raise ArgumentTypeError(f"{name}: got {type(cu_seqlens).__name__}, accepted is an int32 torch.Tensor [B + 1]")
    if cu_seqlens.dtype != torch.int32:
        raise ArgumentTypeError(f"{name}: got dtype {cu_seqlens.dtype}, accepted is int32")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ArgumentError(f"{name}: got shape {list(cu_seqlens.shape)}, accepted is [B + 1]")
    if cu_seqlens.device != device:
        raise ArgumentError(f"{name}: is on {cu_seqlens.device}, must be on the device of q, {device}")


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:6]))}, ..., {values[-1]}]"


# --- the operators, which anybody can call ----------------------------------------------------------------------------
def check_operator(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, max_q: int, max_k: int
) -> None:
    """Packed rows, with ``cu_seqlens`` or without, as far as shapes, dtypes and devices tell."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_dtype(name, tensor)
        if tensor.dim() != 3:
            raise ArgumentError(f"{name}: got shape {list(tensor.shape)}, accepted is [N, H, D]")
    if (cu_q is None) != (cu_k is None):
        raise ArgumentError("cu_seqlens_k: cu_seqlens_q and cu_seqlens_k go together; got one without the other")
    if cu_q is not None:
        check_tensors(q, k, v, cu_q, cu_k)
    else:
        check_tensors(q[None], k[None], v[None], None, None)
    for name, value in (("max_seqlen_q", max_q), ("max_seqlen_k", max_k)):
        if value < 0:
            raise ArgumentError(f"{name}: got {value}, accepted is an int of at least 0")


def check_lengths(
    q: Tensor, k: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, max_q: int, max_k: int, takes_dense: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The values of ``cu_seqlens`` (see check_values), or that the rows are whole sequences; gives them contiguous.

    Args:
        takes_dense: whether the backend takes rows without ``cu_seqlens``.
    """
    if cu_q is not None:
        check_values(cu_q, cu_k, q.shape[0], k.shape[0], max_q, max_k)
        return cu_q.contiguous(), cu_k.contiguous()
    if not takes_dense:
        raise ArgumentError("cu_seqlens_q: got None, which backend 'triton' alone takes")
    sequences = []
    for name, rows, longest in (("max_seqlen_q", q.shape[0], max_q), ("max_seqlen_k", k.shape[0], max_k)):
        if rows and (longest == 0 or rows % longest):
            raise ArgumentError(f"{name}: got {longest} without cu_seqlens, but {rows} rows are no whole sequences")
        sequences.append(rows // longest if rows else None)
    if None not in sequences and sequences[0] != sequences[1]:
        raise ArgumentError(f"max_seqlen_k: q has {sequences[0]} sequences, k has {sequences[1]}; they must be equal")
    return None, None


def check_of_forward(grad_out: Tensor, out: Tensor, lse: Tensor, q: Tensor, needs_lse: bool) -> None:
    """What the backward operator is given of the forward one: ``grad_out`` and ``out`` as ``q``, ``lse [H, N]``."""
    for name, tensor in (("grad_out", grad_out), ("out", out)):
        if tensor.shape != q.shape or tensor.dtype != q.dtype or tensor.device != q.device:
            raise ArgumentError(
                f"{name}: got {list(tensor.shape)} {tensor.dtype} on {tensor.device}, accepted is as q, "
                f"{list(q.shape)} {q.dtype} on {q.device}"
            )
    fits = lse.dim() == 2 and lse.shape[0] == q.shape[1] and lse.shape[1] == q.shape[0]
    if lse.dtype != torch.float32 or lse.device != q.device or not (fits or (lse.numel() == 0 and not needs_lse)):
        raise ArgumentError(
            f"lse: got {list(lse.shape)} {lse.dtype} on {lse.device}, accepted is float32 [H, N] = "
            f"{[q.shape[1], q.shape[0]]} on {q.device}"
        )
