"""The Triton kernels in Triton's interpreter, on the CPU, against the definition in float64.

Collected by name only, from tests/ops/test_triton_kernels.py; by hand: ``TRITON_INTERPRET=1 pytest <this file>``.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from attention_helpers import cumulate, definition, definition_lse, packed
from torch._dynamo.testing import CompileCounterWithBackend

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET=1 is not set", allow_module_level=True)
pytest.importorskip("triton")

from hdxray_fast.errors import ArgumentError, BackendError
from hdxray_fast.ops.attention import attention, resolve_backend
from hdxray_fast.ops.triton import attention as kernels
from hdxray_fast.ops.triton import configs
from hdxray_fast.ops.triton.configs import Config
from hdxray_fast.ops.triton.schedule import CHUNK, schedule_kernel
from hdxray_fast.ops.triton.tiles import FIELDS

RAGGED_Q = [1, 63, 0, 65, 5]
RAGGED_K = [33, 1, 7, 70, 0]
HEAD_DIMS = configs.HEAD_DIMS  # 32 is one power of two, 80 is two; the others are made of the same
CONFIGS = [
    Config(32, 32, 4, 2),
    Config(32, 16, 4, 2, tma=True),
    Config(16, 32, 4, 2, part=16),
    Config(16, 16, 4, 2, tma=True, warp_specialize=True),
]


def check(q, k, v, lengths_q, lengths_k, scale, config, tolerance=1.0):
    """Forward and backward of one configuration; rows behind the last sequence must be zero and stay unseen."""
    rows, keys = sum(lengths_q), sum(lengths_k)
    sides = (cumulate(lengths_q), cumulate(lengths_k), 0, 0)
    with torch.no_grad():
        out, lse = kernels.forward(q, k, v, *sides, scale, config=config)
        grad_out = torch.randn_like(out)
        grads = kernels.backward(grad_out, q, k, v, out, lse, *sides, scale, dq_config=config, dkdv_config=config)
    expected = definition(q, k, v, lengths_q, lengths_k, scale)
    wanted = torch.autograd.grad(expected, (q, k, v), grad_out[:rows].double())
    torch.testing.assert_close(out[:rows].double(), expected, rtol=tolerance * 1e-5, atol=tolerance * 4e-6)
    assert out[rows:].eq(0).all()
    expected_lse = definition_lse(q, k, lengths_q, lengths_k, scale)
    torch.testing.assert_close(lse[:, :rows].double(), expected_lse, rtol=tolerance * 1e-5, atol=tolerance * 1e-5)
    assert lse[:, rows:].eq(-torch.inf).all()
    for grad, want, n in zip(grads, wanted, (rows, keys, keys), strict=True):
        torch.testing.assert_close(grad[:n].double(), want[:n].double(), rtol=tolerance * 1e-4, atol=tolerance * 2e-5)
        assert grad[n:].eq(0).all()
    return out, lse, grads


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "tma", "cut", "ws"])
@pytest.mark.parametrize("dim", [pytest.param(d, marks=[] if d in (32, 80) else pytest.mark.slow) for d in HEAD_DIMS])
def test_ragged_cross_attention(dim, config):
    heads = 2 if dim == 32 else 1  # two of 80 are in test_dense_and_packed_agree_bit_for_bit
    q, k, v = (packed(n, heads, dim) for n in (RAGGED_Q, RAGGED_K, RAGGED_K))
    check(q, k, v, RAGGED_Q, RAGGED_K, 0.3, config)


@pytest.mark.parametrize("config", CONFIGS[:2], ids=["plain", "tma"])
def test_slack_is_zero_and_never_seen(config):
    q, k, v = (packed(n, 2, 32, slack=70) for n in (RAGGED_Q, RAGGED_K, RAGGED_K))
    with torch.no_grad():
        for t, lengths in ((q, RAGGED_Q), (k, RAGGED_K), (v, RAGGED_K)):
            t[sum(lengths) :] = torch.nan
    check(q, k, v, RAGGED_Q, RAGGED_K, 32**-0.5, config)


def test_no_sequence_sees_its_neighbours():
    """NaN in one sequence stays there, also through tiles that reach past a sequence's end."""
    lengths = [17, 33, 20]
    q, k, v = (packed(lengths, 2, 32) for _ in range(3))
    with torch.no_grad():
        for t in (q, k, v):
            t[17:50] = torch.nan
    cu = cumulate(lengths)
    others = torch.tensor([*range(17), *range(50, 70)])
    for config in CONFIGS[:2]:
        out, lse = kernels.forward(q, k, v, cu, cu, 0, 0, 0.2, config=config)
        grads = kernels.backward(
            torch.randn_like(out), q, k, v, out, lse, cu, cu, 0, 0, 0.2, dq_config=config, dkdv_config=config
        )
        for t in (out, lse.T, *grads):
            assert t[others].isfinite().all()
        assert out[17:50].isnan().all()


@pytest.mark.parametrize("scale", [-0.4, 0.0, 3.0])
def test_any_finite_scale(scale):
    q, k, v = (packed(n, 1, 32) for n in ([40, 3], [5, 33], [5, 33]))
    check(q, k, v, [40, 3], [5, 33], scale, CONFIGS[0])


def test_very_negative_scores():
    """A masked score of 0 would be infinitely above these."""
    lengths = [17, 5]
    q, k, v = (packed(lengths, 1, 32) for _ in range(3))
    with torch.no_grad():
        q.fill_(5.0)
        k.copy_(-5.0 + 0.01 * torch.randn_like(k))
    for config in CONFIGS:
        check(q, k, v, lengths, lengths, 1.0, config, tolerance=30.0)


def test_polynomial_exponentials_are_as_accurate_as_16_bits_need():
    config = Config(32, 32, 4, 2, poly=True)
    q, k, v = (packed(n, 2, 32) for n in (RAGGED_Q, RAGGED_K, RAGGED_K))
    out, lse = kernels.forward(q, k, v, cumulate(RAGGED_Q), cumulate(RAGGED_K), 0, 0, 0.3, config=config)
    expected = definition(q, k, v, RAGGED_Q, RAGGED_K, 0.3)
    error = (out.double() - expected).abs().max().item()
    assert 1e-7 < error < 2e-4  # a cubic with a relative error of 7.5e-5, and it was used
    wanted = definition_lse(q, k, RAGGED_Q, RAGGED_K, 0.3)
    torch.testing.assert_close(lse.double(), wanted, rtol=0, atol=1e-4)


def test_dense_and_packed_agree_bit_for_bit():
    q, k, v = (torch.randn(2, s, 2, 80, requires_grad=True) for s in (33, 65, 65))
    out, lse = attention(q, k, v, backend="triton", return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == (2, 2, 33)
    assert not lse.requires_grad
    sides = {"cu_seqlens_q": cumulate([33, 33]), "cu_seqlens_k": cumulate([65, 65])}
    flat, flat_lse = attention(*(t.flatten(0, 1) for t in (q, k, v)), **sides, backend="triton", return_lse=True)
    assert torch.equal(flat, out.flatten(0, 1))
    assert torch.equal(flat_lse.unflatten(1, (2, 33)).transpose(0, 1), lse)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    expected = definition(*(t.flatten(0, 1) for t in (q, k, v)), [33, 33], [65, 65])
    wanted = torch.autograd.grad(expected, (q, k, v), upstream.flatten(0, 1).double())
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-5)


def test_reads_a_fused_projection_and_any_other_strides():
    lengths = [20, 0, 37]
    qkv = torch.randn(57, 3, 2, 32, requires_grad=True)
    cu = cumulate(lengths)
    out = attention(*qkv.unbind(1), cu_seqlens_q=cu, backend="triton")
    assert out.is_contiguous()
    expected = definition(*qkv.unbind(1), lengths, lengths)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=4e-6)
    (grad,) = torch.autograd.grad(out.sum(), qkv)  # the upstream gradient has strides of 0
    (wanted,) = torch.autograd.grad(expected.sum(), qkv)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)

    transposed = qkv.detach().permute(1, 3, 2, 0).contiguous().permute(0, 3, 2, 1)  # D is not the fastest
    assert transposed.stride(-1) != 1
    again = attention(*transposed, cu_seqlens_q=cu, backend="triton")
    assert torch.equal(again, out)


def test_two_runs_agree_bit_for_bit():
    q, k, v = (packed(RAGGED_Q, 2, 32) for _ in range(3))
    runs = []
    for _ in range(2):
        out = attention(q, k, v, cu_seqlens_q=cumulate(RAGGED_Q), backend="triton")
        runs.append((out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("rows_q", "rows_k", "lengths_q", "lengths_k"),
    [(0, 0, [], []), (5, 0, [], []), (0, 4, [0], [4]), (5, 0, [5], [0]), (5, 3, [], []), (4, 4, [0, 0], [0, 0])],
)
def test_batches_of_nothing(rows_q, rows_k, lengths_q, lengths_k):
    q, k, v = torch.randn(rows_q, 2, 32), torch.randn(rows_k, 2, 32), torch.randn(rows_k, 2, 32)
    sides = (cumulate(lengths_q), cumulate(lengths_k), 0, 0)
    out, lse = kernels.forward(q, k, v, *sides, 0.3)
    assert out.shape == q.shape
    assert out.eq(0).all()
    assert lse.eq(-torch.inf).all()
    grads = kernels.backward(torch.randn_like(out), q, k, v, out, lse, *sides, 0.3)
    assert all(grad.eq(0).all() for grad in grads)
    assert [g.shape for g in grads] == [q.shape, k.shape, v.shape]


# --- the schedule -----------------------------------------------------------------------------------------------------
def schedule(cu_own, cu_other, rows_own, rows_other, block):
    batch = len(cu_own) - 1
    tiles = -(-rows_own // block) + batch
    table = torch.full((tiles, FIELDS), -(2**30), dtype=torch.int32)
    cu_own, cu_other = (torch.tensor(c, dtype=torch.int32) for c in (cu_own, cu_other))
    schedule_kernel[(batch + 1,)](
        cu_own, cu_other, table, batch, rows_own, rows_other, tiles, BLOCK=block, CHUNK=CHUNK, num_warps=1
    )
    return table[:, :5].numpy()


@pytest.mark.parametrize("batch", [0, 1, 5, CHUNK + 44])
def test_schedule_covers_every_row_once_and_starts_with_the_longest(batch):
    rng = np.random.default_rng(batch)
    own, other = rng.integers(0, 70, (2, batch)) * rng.integers(0, 2, (2, batch))
    rows, block = int(own.sum()) + 37, 16
    cu_own, cu_other = ([0, *np.cumsum(n).tolist()] for n in (own, other))
    table = schedule(cu_own, cu_other, rows, cu_other[-1], block)
    seen = np.zeros(rows, int)
    expected_other = np.zeros(rows, int)
    for start, end, n in zip(cu_own, cu_own[1:], other, strict=False):
        expected_other[start:end] = n
    lengths = []
    for start, length, first, _, other_length in table:
        here = slice(start + first, start + min(first + block, length))
        seen[here] += 1
        if first < length:
            assert (expected_other[here] == other_length).all()
            lengths.append(other_length)
    assert (seen == 1).all()
    assert lengths == sorted(lengths, reverse=True)


def hostile(rng, batch, rows):
    values = rng.integers(-3 * rows, 3 * rows, batch + 1)
    values[rng.integers(0, batch + 1)] = rng.choice([2**31 - 1, -(2**31), 0])
    return values.tolist()


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.slow if n > 1 else []) for n in range(6)])
def test_nothing_in_cu_seqlens_leads_outside_of_the_tensors(seed):
    rng = np.random.default_rng(seed)
    batch, rows, keys = int(rng.integers(1, 9)), int(rng.integers(1, 50)), int(rng.integers(1, 50))
    cu_q, cu_k = hostile(rng, batch, rows), hostile(rng, batch, keys)
    for own, other, n, m in ((cu_q, cu_k, rows, keys), (cu_k, cu_q, keys, rows)):
        for start, length, first, other_start, other_length in schedule(own, other, n, m, 16):
            assert start >= 0 and length >= 0 and start + length <= n and first >= 0
            assert other_start >= 0 and other_length >= 0 and other_start + other_length <= m
    q, k, v = torch.randn(rows, 1, 32), torch.randn(keys, 1, 32), torch.randn(keys, 1, 32)
    sides = (*(torch.tensor(c, dtype=torch.int32) for c in (cu_q, cu_k)), 0, 0)
    for config in CONFIGS[:2]:
        out, lse = kernels.forward(q, k, v, *sides, 0.3, config=config)
        kernels.backward(out, q, k, v, out, lse, *sides, 0.3, dq_config=config, dkdv_config=config)


# --- the operator -----------------------------------------------------------------------------------------------------
def test_opcheck():
    q, k, v = (packed(n, 2, 32) for n in ([3, 5], [4, 6], [4, 6]))
    sides = (cumulate([3, 5]), cumulate([4, 6]), 5, 6)
    op = torch.ops.hdxray_fast.attention.default
    torch.library.opcheck(op, (q, k, v, *sides, 0.3, "triton", False))
    out, lse = op(q.detach(), k.detach(), v.detach(), *sides, 0.3, "triton", False)
    arguments = (torch.randn_like(out), q.detach(), k.detach(), v.detach(), out, lse, *sides, 0.3, "triton")
    torch.library.opcheck(torch.ops.hdxray_fast.attention_backward.default, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_as_well_as_pytorch_does(dtype):
    """The interpreter multiplies the bits of bfloat16 as if they were integers; there it is computed in float32."""
    q, k, v = (packed(n, 2, 32, dtype) for n in (RAGGED_Q, RAGGED_K, RAGGED_K))
    out = attention(q, k, v, cu_seqlens_q=cumulate(RAGGED_Q), cu_seqlens_k=cumulate(RAGGED_K), backend="triton")
    assert out.dtype == dtype
    expected = definition(q, k, v, RAGGED_Q, RAGGED_K)
    upstream = torch.randn(out.shape).to(dtype)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream.double())
    tolerance = 4 * torch.finfo(dtype).eps
    for found, right in zip((out, *grads), (expected, *wanted), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), right.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([0, 0], [0, 0]), ([3, 4], [0, 0]), ([0, 0], [3, 4])])
def test_empty_sequences_stay_in_the_graph(lengths_q, lengths_k):
    q, k, v = (packed(n, 2, 32) for n in (lengths_q, lengths_k, lengths_k))
    out = attention(q, k, v, cu_seqlens_q=cumulate(lengths_q), cu_seqlens_k=cumulate(lengths_k), backend="triton")
    assert out.requires_grad and out.eq(0).all()
    for grad, tensor in zip(torch.autograd.grad(out.sum(), (q, k, v)), (q, k, v), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("dense", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_compilation_serves_all_batches(dense):
    counter = CompileCounterWithBackend("aot_eager")

    def run(q, k, v, cu, longest):
        sides = {} if dense else {"cu_seqlens_q": cu, "max_seqlen_q": longest}
        return attention(q, k, v, backend="triton", **sides)

    compiled = torch.compile(run, backend=counter, fullgraph=True)
    frames = []
    for lengths in ([5, 9, 2], [10, 3, 1], [0, 20, 7], [6, 6, 6]):
        shape = (3, lengths[0] + 3, 2, 32) if dense else (sum(lengths), 2, 32)
        q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
        out = compiled(q, k, v, cumulate(lengths), max(lengths))
        wanted = run(q, k, v, cumulate(lengths), max(lengths))
        assert torch.equal(out, wanted)
        upstream = torch.randn_like(out)
        for a, b in zip(*(torch.autograd.grad(t, (q, k, v), upstream) for t in (out, wanted)), strict=True):
            assert torch.equal(a, b)
        frames.append(counter.frame_count)
    assert frames[0] == 1
    assert frames[-1] == frames[1] <= 2


def test_argument_errors_come_before_the_launch():
    q = torch.randn(8, 2, 32)
    with pytest.raises(ArgumentError, match=r"^cu_seqlens_q: must rise"):
        attention(q, q, q, cu_seqlens_q=cumulate([3, 6]), backend="triton")
    with pytest.raises(BackendError, match="head dimensions"):
        attention(q[..., :24], q[..., :24], q[..., :24], cu_seqlens_q=cumulate([8]), backend="triton")
    with pytest.raises(BackendError, match="float64"):
        attention(q.double(), q.double(), q.double(), cu_seqlens_q=cumulate([8]), backend="triton")
    assert resolve_backend("auto", q, True, 8, False) == "sdpa"  # the interpreter is for tests


# --- configurations ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch", configs.ARCHES)
def test_every_kernel_has_a_default_everywhere(arch):
    for kernel in configs.KERNELS:
        for dim in configs.HEAD_DIMS:
            for dtype in configs.DTYPES:
                found = configs.candidates(kernel, dim, dtype, arch)
                assert len(set(found)) == len(found) >= 1
                assert not found[0].tma  # the default reads any tensor
                assert arch in ("sm90", "sm100") or not any(c.tma for c in found)
                for config in found:
                    constants = config.constants(kernel, dim, "ieee")
                    assert constants["D0"] + (constants["PARTS"] - 1) * constants["D1"] == dim


def test_a_measured_choice_goes_before_the_default(tmp_path, monkeypatch):
    path = tmp_path / "measured.json"
    monkeypatch.setattr(configs, "MEASURED", path)
    configs._measured.cache_clear()
    chosen = configs.candidates("forward", 64, "bf16", "sm90")[-1]
    default = configs.candidates("forward", 64, "bf16", "sm90")[0]
    assert chosen.tma
    configs.write_measured("a GPU", {configs.measured_key("forward", 64, "bf16", 6401): chosen}, path)
    pick = {"kernel": "forward", "head_dim": 64, "dtype": "bf16", "arch": "sm90"}
    assert configs.choose(**pick, device_name="a GPU", longest=6401) == chosen
    assert configs.choose(**pick, device_name="a GPU", longest=900) == default
    assert configs.choose(**pick, device_name="another GPU", longest=6401) == default
    assert configs.choose(**pick, device_name="a GPU", longest=6401, tma=False) == default  # unaligned tensors
    configs._measured.cache_clear()
