"""What one query of an attention looked at: its softmax weights, computed again from what the layer was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .layers import CrossAttention, SelfAttention


def query_weights(attention: SelfAttention | CrossAttention, inputs: tuple, query: int) -> Tensor:
    """Softmax weights of one query of one sequence over all its keys, mean over heads, ``[Nk] float32``.

    Args:
        attention: the layer.
        inputs: what it was called with, of :func:`captured_inputs`: a batch of one sequence.
        query: its place in the sequence.
    """
    if isinstance(attention, CrossAttention):
        x, y = inputs[:2]
        q = attention.q(x[query]).unflatten(-1, (attention.num_heads, -1))  # [H, Dh]
        k = attention.kv(y).unflatten(-1, (2, attention.num_heads, -1))[:, 0]  # [Nk, H, Dh]
    else:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])  # [N, D]
        qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))  # [N, 3, H, Dh]
        q, k = qkv[query, 0], qkv[:, 1]
    scores = torch.einsum("hd,nhd->hn", q.float(), k.float()) * q.shape[-1] ** -0.5
    return scores.softmax(-1).mean(0)


@contextmanager
def captured_inputs(module: nn.Module) -> Iterator[list[tuple]]:
    """The positional inputs of each call of ``module`` within."""
    calls: list[tuple] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    try:
        yield calls
    finally:
        handle.remove()
