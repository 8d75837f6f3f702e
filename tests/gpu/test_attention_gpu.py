"""Attention on a GPU: every backend and dtype against the definition, determinism, no waiting, compiled models."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import cumulate, definition, definition_lse
from tolerances import assert_two_times_rule

import hdxray_fast as hx
from hdxray_fast.errors import ArgumentError
from hdxray_fast.models.layers import Block
from hdxray_fast.ops.attention import TRITON_HEAD_DIMS, attention, attention_ref

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

LENGTHS_Q = [1, 63, 0, 65, 700, 5]
LENGTHS_K = [640, 1, 7, 129, 333, 0]
LONG = [6401, 1]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def rows(lengths: list[int], dim: int, dtype: torch.dtype, heads: int = 3, slack: int = 0) -> torch.Tensor:
    shape = (sum(lengths) + slack, heads, dim)
    return torch.randn(shape, device="cuda").to(dtype).requires_grad_()


def plain(q, k, v, lengths_q, lengths_k, scale):
    """The definition in the dtype of the tensors throughout: the accuracy that is asked for is twice its error."""
    outs = []
    for a, b, c in zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True):
        p = ((a.transpose(0, 1) @ b.permute(1, 2, 0)) * scale).softmax(-1)
        outs.append((p @ c.transpose(0, 1)).transpose(0, 1))
    return torch.cat(outs)


def both(q, k, v, lengths_q, lengths_k, backend, **options):
    """Output and gradients of a backend, of the definition in float64, and of plain PyTorch in the same dtype."""
    scale = options.get("scale", q.shape[-1] ** -0.5)
    out = attention(
        q, k, v, cu_seqlens_q=cumulate(lengths_q, "cuda"), cu_seqlens_k=cumulate(lengths_k, "cuda"),
        max_seqlen_q=max(lengths_q), max_seqlen_k=max(lengths_k), backend=backend, **options,
    )  # fmt: skip
    upstream = torch.randn_like(out)
    results = []
    for o in (
        out,
        definition(q, k, v, lengths_q, lengths_k, scale),
        plain(q, k, v, lengths_q, lengths_k, scale),
    ):
        results.append((o, *torch.autograd.grad(o, (q, k, v), upstream.to(o.dtype))))
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", TRITON_HEAD_DIMS)
def test_ragged_cross_attention(dim, dtype):
    q, k, v = rows(LENGTHS_Q, dim, dtype), rows(LENGTHS_K, dim, dtype), rows(LENGTHS_K, dim, dtype)
    for ours, exact, same in zip(*both(q, k, v, LENGTHS_Q, LENGTHS_K, "triton"), strict=True):
        assert_two_times_rule(ours, same, exact, tiny=2e-5 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [32, 64])
def test_whole_radiographs(dim, dtype):
    q, k, v = (rows(LONG, dim, dtype, heads=1) for _ in range(3))
    for ours, exact, same in zip(*both(q, k, v, LONG, LONG, "triton"), strict=True):
        assert_two_times_rule(ours, same, exact, tiny=2e-5 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("backend", ["sdpa", "efficient", "varlen", "auto"])
def test_the_other_backends(backend):
    q, k, v = (rows(n, 64, torch.bfloat16) for n in (LENGTHS_Q, LENGTHS_K, LENGTHS_K))
    for ours, exact, same in zip(*both(q, k, v, LENGTHS_Q, LENGTHS_K, backend), strict=True):
        assert_two_times_rule(ours, same, exact, tiny=1e-3)


@pytest.mark.parametrize("backend", ["triton", "sdpa", "flash", "cudnn", "efficient", "auto"])
def test_dense(backend):
    q, k, v = (torch.randn(2, s, 4, 64, device="cuda").bfloat16().requires_grad_() for s in (65, 129, 129))
    out = attention(q, k, v, backend=backend)
    expected = attention_ref(q.double(), k.double(), v.double(), 64**-0.5)
    same = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    upstream = torch.randn_like(out)
    for ours, exact, theirs in zip(
        *((o, *torch.autograd.grad(o, (q, k, v), upstream.to(o.dtype))) for o in (out, expected, same)), strict=True
    ):
        assert_two_times_rule(ours, theirs, exact, tiny=1e-3)


@pytest.mark.parametrize("backend", ["triton", "varlen", "efficient"])
def test_slack_is_zero_and_never_seen(backend):
    q, k, v = (rows(n, 64, torch.bfloat16, slack=200) for n in (LENGTHS_Q, LENGTHS_K, LENGTHS_K))
    with torch.no_grad():
        for t, lengths in ((q, LENGTHS_Q), (k, LENGTHS_K), (v, LENGTHS_K)):
            t[sum(lengths) :] = torch.nan
    sides = {"cu_seqlens_q": cumulate(LENGTHS_Q, "cuda"), "cu_seqlens_k": cumulate(LENGTHS_K, "cuda")}
    sides |= {"max_seqlen_q": max(LENGTHS_Q), "max_seqlen_k": max(LENGTHS_K)}
    out = attention(q, k, v, **sides, backend=backend)
    n, m = sum(LENGTHS_Q), sum(LENGTHS_K)
    assert out[:n].isfinite().all()
    assert out[n:].eq(0).all()
    for grad, real in zip(torch.autograd.grad(out, (q, k, v), torch.randn_like(out)), (n, m, m), strict=True):
        assert grad[:real].isfinite().all()
        assert grad[real:].eq(0).all()


def test_lse_scale_and_a_fused_projection():
    lengths = [65, 0, 300]
    qkv = torch.randn(365, 3, 4, 80, device="cuda").bfloat16()
    q, k, v = qkv.unbind(1)
    cu = cumulate(lengths, "cuda")
    out, lse = attention(q, k, v, cu_seqlens_q=cu, scale=-0.2, backend="triton", return_lse=True)
    assert out.is_contiguous()
    assert lse.shape == (4, 365)
    torch.testing.assert_close(lse.double(), definition_lse(q, k, lengths, lengths, -0.2), rtol=1e-3, atol=1e-3)
    assert_two_times_rule(
        out, plain(q, k, v, lengths, lengths, -0.2), definition(q, k, v, lengths, lengths, -0.2), tiny=1e-3
    )
    odd = torch.randn(365 * 4 * 80 + 1, device="cuda").bfloat16()[1:].view(365, 4, 80)  # not on 16 bytes
    assert odd.data_ptr() % 16
    out = attention(odd, odd, odd, cu_seqlens_q=cu, backend="triton")
    same = plain(odd, odd, odd, lengths, lengths, 80**-0.5)
    assert_two_times_rule(out, same, definition(odd, odd, odd, lengths, lengths), tiny=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_backward_passes_agree_bit_for_bit(dtype):
    q, k, v = (rows(LENGTHS_Q, 64, dtype, heads=12) for _ in range(3))
    upstream = torch.randn(q.shape, device="cuda", dtype=dtype)
    runs = []
    for _ in range(3):
        out = attention(q, k, v, cu_seqlens_q=cumulate(LENGTHS_Q, "cuda"), backend="triton")
        runs.append((out, *torch.autograd.grad(out, (q, k, v), upstream)))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("backend", ["triton", "varlen", "efficient"])
def test_nothing_waits_for_the_device(backend):
    q, k, v = (rows(LENGTHS_Q, 64, torch.bfloat16) for _ in range(3))
    cu, upstream = cumulate(LENGTHS_Q, "cuda"), torch.randn_like(q)

    def step() -> None:
        longest = max(LENGTHS_Q)
        out = attention(q, k, v, cu_seqlens_q=cu, max_seqlen_q=longest, max_seqlen_k=longest, backend=backend)
        torch.autograd.grad(out, (q, k, v), upstream)

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_hostile_cu_seqlens_touch_nothing_else():
    """compute-sanitizer looks on in `make gpu-check`; here the rows around the tensors keep their values."""
    whole = torch.randn(3, 400, 2, 64, device="cuda").bfloat16()
    q, k, v = (t[100:300].requires_grad_() for t in whole.clone())
    for bounds in ([0, 500, 2**31 - 1], [-(2**31), 90, 3], [150, 20, 199], [10**6, -5, 10**6]):
        cu = torch.tensor(bounds, dtype=torch.int32, device="cuda")
        out = attention(q, k, v, cu_seqlens_q=cu, backend="triton")
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
        torch.cuda.synchronize()
        with hx.debug_checks(), pytest.raises(ArgumentError, match=r"^cu_seqlens_q: must rise"):
            attention(q, k, v, cu_seqlens_q=cu, backend="triton")


def test_tf32_by_choice():
    q, k, v = (rows([300], 64, torch.float32) for _ in range(3))
    cu = cumulate([300], "cuda")
    exact = definition(q, k, v, [300], [300])
    errors = []
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision in ("ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = precision
            out = attention(q, k, v, cu_seqlens_q=cu, backend="triton")
            torch.autograd.grad(out.sum(), (q, k, v))
            errors.append((out - exact).abs().max().item())
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert errors[0] < 2e-5
    assert 2e-5 < errors[1] < 5e-3


def test_autocast_and_compiled_blocks():
    torch.manual_seed(0)
    block = Block(128, 2, 4.0).cuda()
    compiled = torch.compile(block, fullgraph=True)
    recompiled = torch._dynamo.utils.counters["stats"]
    counts = []
    for lengths in (LENGTHS_Q, LENGTHS_K, [5, 9, 700, 3, 3, 3], [65, 65, 65, 65, 65, 65]):
        x = torch.randn(sum(lengths), 128, device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = compiled(x, cumulate(lengths, "cuda"), max(lengths))
            wanted = block(x, cumulate(lengths, "cuda"), max(lengths))
        torch.testing.assert_close(out, wanted, rtol=2e-2, atol=2e-2)
        out.sum().backward()
        counts.append(recompiled["unique_graphs"])
    assert counts[-1] == counts[1]


def test_operator_check():
    q, k, v = (rows([3, 65], 64, torch.float16) for _ in range(3))
    cu = cumulate([3, 65], "cuda")
    torch.library.opcheck(torch.ops.hdxray_fast.attention.default, (q, k, v, cu, cu, 65, 65, 0.3, "triton", True))
