"""What the CUDA body of the mask plan is held to, played through on the CPU or run on a GPU."""

from __future__ import annotations

import torch

from hdxray_fast.ops import mask_plan

GUARD, UNTOUCHED = 64, -7  # words around each list, and what they and its free places hold


def truncated(want, bounds):
    """A plan whose images lose the ids that exceed the bounds, as tensors of `emulate`'s order."""
    parts = []
    for (ids, cu), bound in zip((want[:2], want[2:]), bounds, strict=True):
        rows = [ids[a : min(b, a + bound)] for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)]
        parts += [torch.cat([ids[:0], *rows]), torch.tensor([0, *map(len, rows)]).cumsum(0).to(torch.int32)]
    return parts


def choice_of(strategy: str, ratio_inside=0.95, ratio_outside=0.85, predict=1.0, seed=0, epoch=0) -> tuple:
    return mask_plan.STRATEGIES.index(strategy), ratio_inside, ratio_outside, predict, seed, epoch
