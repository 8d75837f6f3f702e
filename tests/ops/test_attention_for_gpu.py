"""Attention compiled for a GPU that is not there: the choice of a backend leaves one graph."""

from __future__ import annotations

import pytest
import torch
from fake_gpu import check, fake_gpu, needs_cuda_build, on_gpu, traced

from hdxray_fast.ops.attention import attention


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize(
    "backend",
    ["auto", "triton", "reference", *(pytest.param(name, marks=needs_cuda_build) for name in ("sdpa", "varlen"))],
)
def test_one_graph(monkeypatch, backend, bounded, dynamic):
    """Bounded or not: lengths that a backend has to look at stay inside the operator."""

    def run(q, k, cu, longest):
        sides = {"cu_seqlens_q": cu, "max_seqlen_q": longest, "max_seqlen_k": longest}
        return attention(q, k, k, **sides, backend=backend, return_lse=True)

    # what PyTorch's own kernel does with its tensors is PyTorch's to trace, and wants a driver
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda q, *_, **__: q + 0)
    with fake_gpu(monkeypatch) as mode, torch.no_grad():
        q, k = (on_gpu(mode, torch.zeros(9, 2, 32, dtype=torch.bfloat16)) for _ in range(2))
        cu = on_gpu(mode, torch.zeros(3, dtype=torch.int32))
        out, lse = traced(run, q, k, cu, 5 if bounded else None, dynamic=dynamic)
        check(out, (9, 2, 32), False)
        check(lse, (2, 9), False)
