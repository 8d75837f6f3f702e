"""Weighted sums of feature maps, several at once: every map is read once, wherever it lies.

For each element 4 M bytes of fp32 maps are read and 2 L bytes of bf16 mixtures written, and the same with the maps'
gradients backward; both kernels are bound by memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from .attention import on_device_of

FORWARD_BLOCK, BACKWARD_BLOCK, WARPS = 512, 128, 4  # elements of a program: more spill with some versions of Triton
PROGRAMS = 1024  # of the backward pass, each with a part of the weights' gradient: several a multiprocessor


@triton.jit
def mix_kernel(
    maps, weights, out, n, M: tl.constexpr, L: tl.constexpr, L_PADDED: tl.constexpr, BLOCK: tl.constexpr
):  # M pointers [n]; [L, M] fp32; [L, n]  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < n
    row = tl.arange(0, L_PADDED)
    mixed = tl.zeros([L_PADDED, BLOCK], tl.float32)
    for m in tl.static_range(M):
        x = tl.load(maps[m] + place, mask=there, other=0.0).to(tl.float32)
        w = tl.load(weights + row * M + m, mask=row < L, other=0.0)
        mixed += w[:, None] * x[None, :]
    wanted = (row < L)[:, None] & there[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * n + place[None, :], mixed.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def mix_backward_kernel(
    grads, maps, weights, grad_maps, parts, n,
    M: tl.constexpr, M_PADDED: tl.constexpr, L: tl.constexpr, L_PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # [L, n]; M pointers [n]; [L, M] fp32; M pointers [n]; [programs, L_PADDED, M_PADDED] fp32  # fmt: skip
    program = tl.program_id(0)
    row, column = tl.arange(0, L_PADDED), tl.arange(0, M_PADDED)
    products = tl.zeros([L_PADDED, M_PADDED], tl.float32)
    for block in range(program, tl.cdiv(n, BLOCK), tl.num_programs(0)):
        place = (tl.zeros([BLOCK], tl.int64) + block) * BLOCK + tl.arange(0, BLOCK)
        there = place < n
        wanted = (row < L)[:, None] & there[None, :]
        g = tl.load(grads + row.to(tl.int64)[:, None] * n + place[None, :], mask=wanted, other=0.0).to(tl.float32)
        for m in tl.static_range(M):
            x = tl.load(maps[m] + place, mask=there, other=0.0).to(tl.float32)
            w = tl.load(weights + row * M + m, mask=row < L, other=0.0)
            grad = tl.sum(w[:, None] * g, axis=0)
            tl.store(grad_maps[m] + place, grad.to(grad_maps[m].dtype.element_ty), mask=there)
            product = tl.sum(g * x[None, :], axis=1)
            products += tl.where(column[None, :] == m, product[:, None], 0.0)
    part = parts + program * L_PADDED * M_PADDED
    tl.store(part + row[:, None] * M_PADDED + column[None, :], products)


INTERPRETED = isinstance(mix_kernel, InterpretedFunction)  # TRITON_INTERPRET=1 when this was imported


def forward(
    maps: list[Tensor],  # M of [N, D], contiguous, bf16 | fp16 | fp32
    weights: Tensor,  # [L, M] fp32, contiguous
    dtype: torch.dtype,
) -> Tensor:
    """``[L, N, D]`` of ``dtype``."""
    depth, count, size = *weights.shape, maps[0].numel()
    out = maps[0].new_empty(depth, *maps[0].shape, dtype=dtype)
    if size:
        rows = triton.next_power_of_2(depth)
        with on_device_of(out):
            mix_kernel[(triton.cdiv(size, FORWARD_BLOCK),)](
                tuple(maps), weights, out, size, count, depth, rows, FORWARD_BLOCK, num_warps=WARPS
            )
    return out


def backward(grads: Tensor, maps: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Gradients of the maps, and of the weights behind them; the same bits each time."""
    depth, count, size = *weights.shape, maps[0].numel()
    grad_maps = [torch.empty_like(x) for x in maps]
    rows, columns = triton.next_power_of_2(depth), triton.next_power_of_2(count)
    programs = min(triton.cdiv(size, BACKWARD_BLOCK), PROGRAMS)
    parts = weights.new_empty(programs, rows, columns)
    if size:
        with on_device_of(grads):
            mix_backward_kernel[(programs,)](
                grads, tuple(maps), weights, tuple(grad_maps), parts, size,
                count, columns, depth, rows, BACKWARD_BLOCK, num_warps=WARPS,
            )  # fmt: skip
    return [*grad_maps, parts.sum(0)[:depth, :count].contiguous()]
