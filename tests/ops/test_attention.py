"""Attention: every backend against the definition in float64, packed and dense, both directions; bad input by name."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import cumulate, definition, definition_lse, packed
from tolerances import assert_two_times_rule

from hdxray_fast.errors import ArgumentError, ArgumentTypeError, BackendError, HDXrayError
from hdxray_fast.ops.attention import attention, attention_ref

BACKENDS = ["auto", "sdpa", "reference"]
RAGGED_Q = [1, 63, 0, 65, 130]
RAGGED_K = [65, 1, 7, 63, 33]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("lengths_q", "lengths_k"),
    [(RAGGED_Q, RAGGED_Q), (RAGGED_Q, RAGGED_K), ([65, 65], [65, 65]), ([7, 7], [63, 63]), ([1], [1])],
    ids=["self", "cross", "equal", "equal-cross", "one-token"],
)
def test_packed_equals_definition(backend, lengths_q, lengths_k):
    q, k, v = packed(lengths_q), packed(lengths_k), packed(lengths_k)
    out = attention(q, k, v, cu_seqlens_q=cumulate(lengths_q), cu_seqlens_k=cumulate(lengths_k), backend=backend)
    assert out.shape == q.shape
    assert out.dtype == q.dtype
    expected = definition(q, k, v, lengths_q, lengths_k)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-6)

    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    expected_grads = torch.autograd.grad(expected, (q, k, v), upstream.double())
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 5])
def test_dense_equals_packed(backend, head_dim):
    q, k, v = torch.randn(2, 65, 2, head_dim), torch.randn(2, 33, 2, head_dim), torch.randn(2, 33, 2, head_dim)
    dense = attention(q, k, v, backend=backend)
    flat = attention(
        *(t.flatten(0, 1) for t in (q, k, v)),
        cu_seqlens_q=cumulate([65, 65]),
        cu_seqlens_k=cumulate([33, 33]),
        max_seqlen_q=65,
        max_seqlen_k=33,
        backend=backend,
    )
    torch.testing.assert_close(dense.flatten(0, 1), flat, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_accurate_as_pytorch(dtype):
    q, k, v = (packed(RAGGED_Q, dtype=dtype).detach() for _ in range(3))
    out = attention(q, k, v, cu_seqlens_q=cumulate(RAGGED_Q))
    assert out.dtype == dtype
    parts = zip(q.split(RAGGED_Q), k.split(RAGGED_Q), v.split(RAGGED_Q), strict=True)
    plain = [((a.transpose(0, 1) @ b.permute(1, 2, 0)) * 32**-0.5).softmax(-1) @ c.transpose(0, 1) for a, b, c in parts]
    plain = torch.cat([part.transpose(0, 1) for part in plain])
    assert_two_times_rule(out, plain, definition(q, k, v, RAGGED_Q, RAGGED_Q))


def test_reads_strided_views_of_a_fused_projection():
    qkv = torch.randn(sum(RAGGED_Q), 3, 4, 16)
    q, k, v = qkv.unbind(1)
    assert not q.is_contiguous()
    out = attention(q, k, v, cu_seqlens_q=cumulate(RAGGED_Q))
    torch.testing.assert_close(out.double(), definition(q, k, v, RAGGED_Q, RAGGED_Q), rtol=1e-5, atol=2e-6)


def test_long_sequence_and_scale():
    q, k, v = (torch.randn(6401, 1, 8) for _ in range(3))
    out = attention(q, k, v, cu_seqlens_q=cumulate([6401]), scale=0.7)
    rows = [0, 3200, 6400]
    expected = attention_ref(q[None, rows].double(), k[None].double(), v[None].double(), 0.7)[0]
    torch.testing.assert_close(out[rows].double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lse(backend):
    q, k, v = packed(RAGGED_Q), packed(RAGGED_K), packed(RAGGED_K)
    out, lse = attention(
        q, k, v, cu_seqlens_q=cumulate(RAGGED_Q), cu_seqlens_k=cumulate(RAGGED_K), backend=backend, return_lse=True
    )
    assert out.shape == q.shape
    assert lse.shape == (3, sum(RAGGED_Q))
    assert lse.dtype == torch.float32
    assert not lse.requires_grad
    expected = definition_lse(q, k, RAGGED_Q, RAGGED_K)
    torch.testing.assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)

    dense = torch.randn(2, 9, 3, 8)
    _, dense_lse = attention(dense, dense, dense, backend=backend, return_lse=True)
    assert dense_lse.shape == (2, 3, 9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_without_keys_are_zero(backend):
    q, k, v = packed([4, 5]), packed([0, 6]), packed([0, 6])
    out, lse = attention(
        q, k, v, cu_seqlens_q=cumulate([4, 5]), cu_seqlens_k=cumulate([0, 6]), backend=backend, return_lse=True
    )
    assert out[:4].eq(0).all()
    assert lse[:, :4].eq(-torch.inf).all()
    torch.testing.assert_close(out[4:].double(), definition(q[4:], k, v, [5], [6]), rtol=1e-5, atol=2e-6)
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_batch_of_nothing(backend, lengths):
    q, k, v = packed([0]), packed([0]), packed([0])
    out = attention(q, k, v, cu_seqlens_q=cumulate(lengths), backend=backend)
    assert out.shape == (0, 3, 32)


@pytest.mark.parametrize(
    ("backend", "dim", "reason"),
    [
        ("triton", 8, "head dimensions 32, 64, 80, 96, 128, these have 8"),
        ("triton", 32, "CUDA GPU|Triton cannot be imported"),
        ("varlen", 32, "takes CUDA tensors"),
        ("flash", 32, "takes CUDA tensors"),
    ],
)
def test_a_backend_that_cannot_run_here_is_refused_with_the_reason(backend, dim, reason):
    q = torch.randn(4, 2, dim)
    with pytest.raises(BackendError, match=rf"backend='{backend}': .*({reason})"):
        attention(q, q, q, cu_seqlens_q=cumulate([4]), backend=backend)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("lengths", [RAGGED_Q, [4, 4]], ids=["ragged", "a rectangle"])
def test_slack_is_zero_and_never_seen(lengths, backend):
    q, k, v = (packed(lengths, slack=7) for _ in range(3))
    with torch.no_grad():
        for t in (q, k, v):
            t[sum(lengths) :] = torch.nan
    out, lse = attention(q, k, v, cu_seqlens_q=cumulate(lengths), backend=backend, return_lse=True)
    rows = sum(lengths)
    torch.testing.assert_close(out[:rows].double(), definition(q, k, v, lengths, lengths), rtol=1e-5, atol=2e-6)
    assert out[rows:].eq(0).all()
    assert lse[:, rows:].eq(-torch.inf).all()
    for grad in torch.autograd.grad(out, (q, k, v), torch.randn_like(out)):
        assert grad.isfinite().all()
        assert grad[rows:].eq(0).all()


GOOD = {"q": torch.randn(5, 2, 8), "k": torch.randn(6, 2, 8), "v": torch.randn(6, 2, 8)}
GOOD |= {"cu_seqlens_q": cumulate([2, 3]), "cu_seqlens_k": cumulate([6, 0])}


@pytest.mark.parametrize(
    ("error", "culprit", "change"),
    [
        (ArgumentTypeError, "q", {"q": [[1.0]]}),
        (ArgumentTypeError, "k", {"k": torch.ones(6, 2, 8, dtype=torch.int64)}),
        (ArgumentTypeError, "v", {"v": torch.ones(6, 2, 8, dtype=torch.float64)}),
        (ArgumentError, "q", {"q": torch.randn(1, 5, 2, 8)}),
        (ArgumentError, "q", {"q": torch.randn(5, 2, 0)}),
        (ArgumentError, "k", {"k": torch.randn(6, 2, 4)}),
        (ArgumentError, "k", {"k": torch.randn(6, 3, 8)}),
        (ArgumentError, "v", {"v": torch.randn(7, 2, 8)}),
        (ArgumentError, "k", {"k": torch.randn(6, 2, 8, device="meta")}),
        (ArgumentTypeError, "cu_seqlens_q", {"cu_seqlens_q": cumulate([2, 3]).long()}),
        (ArgumentTypeError, "cu_seqlens_q", {"cu_seqlens_q": [0, 2, 5]}),
        (ArgumentError, "cu_seqlens_q", {"cu_seqlens_q": torch.zeros(0, dtype=torch.int32)}),
        (ArgumentError, "cu_seqlens_q", {"cu_seqlens_q": cumulate([2, 3])[None]}),
        (ArgumentError, "cu_seqlens_q", {"cu_seqlens_q": cumulate([2, 4])}),
        (ArgumentError, "cu_seqlens_q", {"cu_seqlens_q": cumulate([6, -1])}),
        (ArgumentError, "cu_seqlens_k", {"cu_seqlens_k": cumulate([1, 6])}),
        (ArgumentError, "cu_seqlens_k", {"cu_seqlens_k": cumulate([6])}),
        (ArgumentError, "cu_seqlens_k", {"cu_seqlens_k": cumulate([6, 0]).to("meta")}),
        (ArgumentError, "cu_seqlens_q", {"cu_seqlens_q": None}),
        (ArgumentError, "max_seqlen_q", {"max_seqlen_q": -1}),
        (ArgumentTypeError, "max_seqlen_k", {"max_seqlen_k": 2.5}),
        (ArgumentTypeError, "return_lse", {"return_lse": "yes"}),
        (ArgumentError, "backend", {"backend": "fastest"}),
    ],
)
def test_bad_input_names_the_argument(error, culprit, change):
    attention(**GOOD)
    with pytest.raises(error, match=f"^{culprit}:") as caught:
        attention(**{**GOOD, **change})
    assert isinstance(caught.value, HDXrayError)


def test_tensors_without_values_give_shapes():
    q, k = torch.randn(5, 2, 8, device="meta"), torch.randn(6, 2, 8, device="meta")
    sides = {"cu_seqlens_q": cumulate([2, 3]).to("meta"), "cu_seqlens_k": cumulate([6, 0]).to("meta")}
    out, lse = attention(q, k, k, **sides, return_lse=True)
    assert (out.shape, out.device.type, lse.shape) == ((5, 2, 8), "meta", (2, 5))


def test_dense_batches_must_agree():
    with pytest.raises(ArgumentError, match=r"^k:"):
        attention(torch.randn(2, 3, 1, 8), torch.randn(1, 3, 1, 8), torch.randn(1, 3, 1, 8))
