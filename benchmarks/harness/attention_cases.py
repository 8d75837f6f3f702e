"""Inputs of the attention cases: packed rows, the same rows padded or dense, and the answer to hold results against."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

import hdxray_fast as hx

GRID = 80  # patches on a side of the 1280-px canvas


@dataclass(frozen=True)
class Shape:
    """What a call attends over.

    Attributes:
        lengths_q: tokens of each sequence, B of them.
        lengths_k: likewise for keys and values.
    """

    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    heads: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def batch(self) -> int:
        return len(self.lengths_q)

    @property
    def dense(self) -> bool:
        """Whether all sequences are equally long."""
        return len(set(self.lengths_q)) == len(set(self.lengths_k)) == 1

    @property
    def max_q(self) -> int:
        return max(self.lengths_q)

    @property
    def max_k(self) -> int:
        return max(self.lengths_k)

    @property
    def bytes(self) -> int:
        """Of q, k, v and the output."""
        rows = 2 * sum(self.lengths_q) + 2 * sum(self.lengths_k)
        return rows * self.heads * self.head_dim * self.dtype.itemsize


def dense_shape(batch: int, length: int, heads: int, head_dim: int) -> Shape:
    return Shape((length,) * batch, (length,) * batch, heads, head_dim)


def cross_shape(batch: int, queries: int, keys: int, heads: int, head_dim: int) -> Shape:
    return Shape((queries,) * batch, (keys,) * batch, heads, head_dim)


def ragged_shape(batch: int, heads: int, head_dim: int, seed: int = 0) -> Shape:
    """Tokens that an encoder sees of each image: what `hx.plan_masks` keeps, and a class token."""
    inside, valid = contour_grids(batch, seed)
    plan = hx.plan_masks(inside, valid, 0.95, 0.85, seed=seed)
    lengths = tuple(n + 1 for n in plan.keep_counts.tolist())
    return Shape(lengths, lengths, heads, head_dim)


def contour_grids(batch: int, seed: int = 0, grid: int = GRID) -> tuple[Tensor, Tensor]:
    """Inside and valid grids, bool ``[B, grid, grid]``: ellipses of many chest sizes, letterboxed or not."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:grid, :grid] / grid
    inside, valid = np.zeros((batch, grid, grid), bool), np.ones((batch, grid, grid), bool)
    for b in range(batch):
        height, width = rng.uniform(0.22, 0.45), rng.uniform(0.2, 0.42)
        top, left = rng.uniform(0.42, 0.55), rng.uniform(0.45, 0.55)
        inside[b] = ((y - top) / height) ** 2 + ((x - left) / width) ** 2 < 1
        margin = int(rng.integers(0, 4)) * grid // 40  # of two sides, patches: landscape and portrait radiographs
        if margin and rng.random() < 0.5:
            valid[b, :margin] = valid[b, grid - margin :] = False
        elif margin:
            valid[b, :, :margin] = valid[b, :, grid - margin :] = False
    return torch.from_numpy(inside), torch.from_numpy(valid)


@dataclass
class Inputs:
    """Sets of packed q, k, v and output gradient, ``[N, H, D]``; random, so that no two sets are alike."""

    shape: Shape
    sets: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    cu_q: Tensor  # [B + 1] int32
    cu_k: Tensor  # [B + 1] int32
    training: bool
    reference: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    @classmethod
    def make(cls, shape: Shape, count: int, training: bool, device: str = "cuda") -> Inputs:
        def rows(lengths: tuple[int, ...]) -> Tensor:
            size = (sum(lengths), shape.heads, shape.head_dim)
            return torch.randn(size, device=device, dtype=torch.float32).to(shape.dtype)

        def cu_seqlens(lengths: tuple[int, ...]) -> Tensor:
            return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

        q, k = shape.lengths_q, shape.lengths_k
        sets = [(rows(q), rows(k), rows(k), rows(q)) for _ in range(count)]
        return cls(shape, sets, cu_seqlens(q), cu_seqlens(k), training)

    def padded(self, rows: Tensor, queries: bool, length: int | None = None) -> Tensor:
        """Packed ``[N, H, D]`` as ``[B, S, H, D]``, zeros behind each sequence; a view where all are S long."""
        lengths = self.shape.lengths_q if queries else self.shape.lengths_k
        length = length or max(lengths)
        if set(lengths) == {length}:
            return rows.view(len(lengths), length, *rows.shape[1:])
        out = rows.new_zeros(len(lengths), length, *rows.shape[1:])
        for image, part in enumerate(rows.split(lengths)):
            out[image, : len(part)] = part
        return out

    def packed(self, padded: Tensor, queries: bool) -> Tensor:
        """``[B, S, H, D]`` back to ``[N, H, D]``."""
        lengths = self.shape.lengths_q if queries else self.shape.lengths_k
        return torch.cat([padded[image, :n] for image, n in enumerate(lengths)])

    def answer(self) -> None:
        """Compute what results are held against now, so that it does not count as a contender's memory later."""
        for image in {0, self.shape.batch - 1}:
            self._answer(image)

    def error(self, result: tuple[Tensor, ...]) -> float:
        """Largest relative error of the output (and of dq, dk, dv) of set 0, packed, against fp32 arithmetic.

        The first and the last sequence are looked at, in the first and the last head.
        """
        worst = 0.0
        for image in sorted({0, self.shape.batch - 1}):
            for out, ref in zip(result, self._answer(image), strict=True):
                cu = self.cu_q if out.shape[0] == self.sets[0][0].shape[0] else self.cu_k
                part = _slice(out, cu, image).double()
                norm = (part - ref).norm() / ref.norm().clamp_min(1e-30)
                worst = max(worst, norm.item()) if not math.isnan(norm.item()) else math.nan
                if math.isnan(worst):
                    return worst
        return worst

    def _answer(self, image: int) -> tuple[Tensor, ...]:
        if image not in self.reference:
            q, k, v, grad = self.sets[0]
            parts = [_slice(t, cu, image).float() for t, cu in ((q, self.cu_q), (k, self.cu_k), (v, self.cu_k))]
            parts = [p.requires_grad_(self.training) for p in parts]
            scores = torch.einsum("qhd,khd->hqk", parts[0], parts[1]) * self.shape.head_dim**-0.5
            out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), parts[2])
            grads = torch.autograd.grad(out, parts, _slice(grad, self.cu_q, image).float()) if self.training else ()
            self.reference[image] = tuple(t.detach().double() for t in (out, *grads))
        return self.reference[image]


def _slice(rows: Tensor, cu_seqlens: Tensor, image: int) -> Tensor:
    """One sequence of packed rows, its first and last head: ``[S, 2, D]``."""
    begin, end = cu_seqlens[image].item(), cu_seqlens[image + 1].item()
    return rows[begin:end, [0, -1]].detach()
