"""Attention as an operator: opcheck, autocast, graphs that stay compiled from batch to batch, choice of backend."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from attention_helpers import cumulate, definition, definition_lse, packed
from torch._dynamo.testing import CompileCounterWithBackend

from hdxray_fast.cli import doctor
from hdxray_fast.errors import ArgumentError, BackendError
from hdxray_fast.models.layers import Block
from hdxray_fast.ops import attention as attention_module
from hdxray_fast.ops import attention_table, attention_torch
from hdxray_fast.ops.attention import attention, resolve_backend

BATCHES = [([1, 63, 0, 65], [65, 1, 7, 33]), ([5, 9, 30, 2], [3, 70, 1, 1]), ([20, 20, 20, 20], [9, 8, 7, 6])]


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize(("lengths_q", "lengths_k"), [*BATCHES, ([3, 4], [0, 0]), ([0], [4])])
def test_operator_equals_definition(backend, lengths_q, lengths_k):
    q, k, v = packed(lengths_q), packed(lengths_k), packed(lengths_k)
    sides = (cumulate(lengths_q), cumulate(lengths_k), 0, 0)
    out, lse = torch.ops.hdxray_fast.attention(q, k, v, *sides, 0.2, backend, True)
    expected = definition(q, k, v, lengths_q, lengths_k, 0.2)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(lse.double(), definition_lse(q, k, lengths_q, lengths_k, 0.2), rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    if not expected.requires_grad or sum(lengths_k) == 0:
        assert all(grad.eq(0).all() for grad in grads)
        return
    for grad, expected_grad in zip(grads, torch.autograd.grad(expected, (q, k, v), upstream.double()), strict=True):
        torch.testing.assert_close(grad, expected_grad.float(), rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("bounds", [True, False], ids=["bounded", "unbounded"])
def test_one_compilation_serves_all_ragged_batches(backend, bounds):
    counter = CompileCounterWithBackend("aot_eager")

    def run(q, k, v, cu_q, cu_k, max_q, max_k):
        return attention(
            q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=max_q, max_seqlen_k=max_k,
            backend=backend, return_lse=True,
        )  # fmt: skip

    torch._dynamo.reset()
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    frames = []
    for lengths_q, lengths_k in BATCHES * 2:
        q, k, v = (packed(n) for n in (lengths_q, lengths_k, lengths_k))
        longest = (max(lengths_q), max(lengths_k)) if bounds else (None, None)
        out, lse = compiled(q, k, v, cumulate(lengths_q), cumulate(lengths_k), *longest)
        expected = definition(q, k, v, lengths_q, lengths_k)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(lse.double(), definition_lse(q, k, lengths_q, lengths_k), rtol=1e-5, atol=1e-5)
        upstream = torch.randn_like(out)
        grads = torch.autograd.grad(out, (q, k, v), upstream)
        for grad, wanted in zip(grads, torch.autograd.grad(expected, (q, k, v), upstream.double()), strict=True):
            torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=5e-6)
        frames.append(counter.frame_count)
    assert frames[0] == 1
    assert frames[-1] == frames[1] <= 2  # the second batch makes the sizes dynamic, no later one compiles


def test_a_block_compiles_without_a_break():
    torch.manual_seed(0)
    block = Block(64, 2, 2.0)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for lengths, _ in BATCHES:
        x = torch.randn(sum(lengths), 64)
        wanted = block(x, cumulate(lengths), max(lengths))
        torch.testing.assert_close(compiled(x, cumulate(lengths), max(lengths)), wanted, rtol=1e-5, atol=1e-5)


def test_a_scale_that_changes_is_no_error_of_a_compiled_graph():
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, scale: attention(q, q, q, scale=scale), backend="eager", fullgraph=True)
    q = torch.randn(2, 5, 1, 8)
    for scale in (0.1, 0.2, 0.3):
        torch.testing.assert_close(compiled(q, scale), attention(q, q, q, scale=scale))


def test_wrong_cu_seqlens_are_found_in_compiled_graphs_too():
    compiled = torch.compile(
        lambda q, cu: attention(q, q, q, cu_seqlens_q=cu), backend="aot_eager", fullgraph=True, dynamic=True
    )
    q = torch.randn(8, 2, 16)
    compiled(q, cumulate([3, 5]))
    with pytest.raises(ArgumentError, match=r"^cu_seqlens_q: must rise from 0"):
        compiled(q, cumulate([3, 6]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_to_the_dtype_in_force(dtype):
    q, k, v = packed([3, 5]), packed([4, 6]), packed([4, 6]).to(torch.bfloat16)
    cu = {"cu_seqlens_q": cumulate([3, 5]), "cu_seqlens_k": cumulate([4, 6])}
    with torch.autocast("cpu", dtype=dtype):
        out = attention(q, k, v, **cu)
        op_out, _ = torch.ops.hdxray_fast.attention(q, k, v, *cu.values(), 0, 0, 32**-0.5, "sdpa", False)
        assert attention(*(t.double() for t in (q, k, v)), **cu).dtype == torch.float64
    assert out.dtype == op_out.dtype == dtype
    torch.testing.assert_close(out, op_out)
    wanted = attention(q.to(dtype), k.to(dtype), v.to(dtype), **cu)
    torch.testing.assert_close(out, wanted)
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["packed", "dense"])
def test_what_is_promised_in_float32_is_computed_in_float32_under_autocast(dtype, layout):
    """The log-sum-exp and the reference; the backward pass belongs outside of autocast, as everywhere in PyTorch."""
    q, k, v = ((t.detach() * 8).to(dtype).requires_grad_() for t in (packed([5, 9]), packed([4, 6]), packed([4, 6])))
    cu = {"cu_seqlens_q": cumulate([5, 9]), "cu_seqlens_k": cumulate([4, 6])}
    if layout == "dense":
        q, k, v, cu = q[None], k[None], v[None], {}

    def run(enabled):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            out, lse = attention(q, k, v, **cu, scale=4.0, backend="reference", return_lse=True)
        return out, lse, *torch.autograd.grad(out.sum(), (q, k, v))

    for found, expected in zip(run(True), run(False), strict=True):
        assert torch.equal(found, expected)


def test_compiled_backward_is_computed_in_float32_under_autocast():
    q, k, v = packed([5, 9]), packed([4, 6]), packed([4, 6])
    sides = (cumulate([5, 9]), cumulate([4, 6]), 0, 0)
    out, lse = torch.ops.hdxray_fast.attention(q, k, v, *sides, 0.3, "sdpa", True)
    arguments = (torch.randn_like(out), *(t.detach() for t in (q, k, v, out, lse)), *sides, 0.3, "sdpa")
    expected = torch.ops.hdxray_fast.attention_backward(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.ops.hdxray_fast.attention_backward(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("slack", [0, 5])
@pytest.mark.parametrize("bounds", [True, False])
def test_padded_sequences_equal_definition(slack, bounds):
    """The path of packed tensors on PyTorch's GPU kernels, on the CPU; slack is poisoned, and must not be seen."""
    lengths_q, lengths_k = [1, 63, 0, 65, 7], [65, 1, 7, 33, 0]
    q, k, v = (packed(n, slack=slack) for n in (lengths_q, lengths_k, lengths_k))
    with torch.no_grad():
        for t, n in ((q, sum(lengths_q)), (k, sum(lengths_k)), (v, sum(lengths_k))):
            t[n:] = torch.nan
    longest = (70, 65) if bounds else (0, 0)
    sides = (cumulate(lengths_q), cumulate(lengths_k))
    out = attention_torch.padded(q, k, v, *sides, *longest, 0.3, "sdpa")
    rows = sum(lengths_q)
    expected = definition(q, k, v, lengths_q, lengths_k, 0.3)
    torch.testing.assert_close(out[:rows].double(), expected, rtol=1e-5, atol=2e-6)
    assert out[rows:].eq(0).all()
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream[:rows].double())
    for grad, want, n in zip(grads, wanted, (rows, sum(lengths_k), sum(lengths_k)), strict=True):
        torch.testing.assert_close(grad[:n].double(), want[:n].double(), rtol=1e-4, atol=5e-6)
        assert grad[n:].eq(0).all()


@pytest.mark.parametrize("way", ["auto", "reference", "dense", "operator", "padded", "varlen"])
@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([0, 0], [0, 0]), ([3, 4], [0, 0]), ([0, 0], [3, 4]), ([], [])])
def test_empty_sequences_stay_in_the_graph(way, lengths_q, lengths_k):
    """Zeros, and gradients of zeros for all three, whatever the others hold: PyTorch would refuse a missing one."""
    q, k, v = packed(lengths_q), packed(lengths_k), packed(lengths_k)
    cu_q, cu_k = cumulate(lengths_q), cumulate(lengths_k)
    if way == "dense":
        out = attention(*(t[None] for t in (q, k, v)))[0]
    elif way == "operator":
        out, _ = torch.ops.hdxray_fast.attention(q, k, v, cu_q, cu_k, 0, 0, 0.3, "sdpa", False)
    elif way == "padded":
        out = attention_torch.padded(q, k, v, cu_q, cu_k, 0, 0, 0.3, "sdpa")
    elif way == "varlen":
        out = attention_torch.packed(q, k, v, cu_q, cu_k, 0, 0, 0.3, "varlen")
    else:
        out = attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, backend=way)
    assert out.shape == q.shape
    assert out.requires_grad
    assert out.eq(0).all()
    for grad, tensor in zip(torch.autograd.grad(out.sum(), (q, k, v)), (q, k, v), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


# --- the choice -------------------------------------------------------------------------------------------------------
def queries(dim=64, dtype=torch.bfloat16):
    return SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype, shape=(100, 12, dim))


def test_shape_classes():
    assert attention_table.shape_class("packed", 64, torch.bfloat16, 900, True) == "packed D=64 bf16 short train"
    assert attention_table.shape_class("dense", 80, torch.float32, 6401, False) == "dense D=80 fp32 long forward"


def test_auto_takes_what_was_measured(monkeypatch):
    choices = {
        "packed D=64 bf16 short train": "varlen",
        "packed D=64 bf16 long train": "triton",
        "dense D=64 bf16 long train": "cudnn",
    }
    monkeypatch.setattr(attention_module, "_measured", lambda index: choices)
    monkeypatch.setattr(attention_module, "why_not_triton", lambda *_: "")
    monkeypatch.setattr(attention_torch, "varlen_parameters", lambda: ("query", "scale"))
    assert resolve_backend("auto", queries(), True, 900, True) == "varlen"
    assert resolve_backend("auto", queries(), True, 6401, True) == "triton"
    assert resolve_backend("auto", queries(), False, 6401, True) == "cudnn"
    assert resolve_backend("auto", queries(), False, 900, True) == "sdpa"  # not measured: the default
    assert resolve_backend("auto", queries(), True, 900, False) == "triton"
    assert resolve_backend("auto", queries(dim=48), True, 900, False) == "sdpa"  # no kernel has this size
    assert resolve_backend("auto", queries(dtype=torch.float64), True, 900, False) == "sdpa"
    monkeypatch.setattr(attention_module, "why_not_triton", lambda *_: "too old")
    assert resolve_backend("auto", queries(), True, 6401, True) == "sdpa"
    with pytest.raises(BackendError, match="too old"):
        resolve_backend("triton", queries(), True, 6401, True)


def test_varlen_is_chosen_by_what_it_takes(monkeypatch):
    """PyTorch 2.10's takes no scale: then it serves the usual one alone, and is not given any."""
    given = []

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        given.append((max_q, max_k))
        return query + 0 * key.sum()

    attention_torch.varlen_parameters.cache_clear()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr(attention_module, "_measured", lambda index: {"packed D=64 bf16 short forward": "varlen"})
    assert resolve_backend("auto", queries(), True, 900, False) == "varlen"
    assert resolve_backend("auto", queries(), True, 900, False, usual_scale=False) == "sdpa"
    with pytest.raises(BackendError, match=r"takes no scale but D \*\* -0.5"):
        resolve_backend("varlen", queries(), True, 900, False, usual_scale=False)
    q = packed([3, 5])
    cu = cumulate([3, 5])
    assert torch.equal(attention_torch.packed(q, q, q, cu, cu, 5, 0, 32**-0.5, "varlen"), q)
    assert given == [(5, 8)]
    monkeypatch.undo()
    attention_torch.varlen_parameters.cache_clear()
    assert {"cu_seq_q", "max_q"} <= set(attention_torch.varlen_parameters())


def test_doctor_says_which_and_why(monkeypatch):
    rows = attention_table.explain("a GPU")
    assert rows == [
        ("packed, all shapes", "triton", "the default: not measured on this device"),
        ("dense, all shapes", "sdpa", "the default: not measured on this device"),
    ]
    assert attention_table.explain("a GPU", "it is too old")[0][1:] == (
        "sdpa",
        "the Triton kernels are out: it is too old",
    )
    choice = {"packed D=64 bf16 long train": {"backend": "triton", "ms": {"varlen": 2.0, "triton": 1.5}}}
    found = {"a GPU": {"measured": "2026-01-02", "torch": "2.11", "triton": "3.6", "choices": choice}}
    monkeypatch.setattr(attention_table, "table", lambda: found)
    first = attention_table.explain("a GPU")[0]
    assert first == ("packed D=64 bf16 long train", "triton", "measured 2026-01-02, ms: triton 1.5, varlen 2")

    gpu = {"name": "a GPU", "memory_mib": 1, "capability": "9.0", "driver": "1", "cuda": "13"}
    monkeypatch.setattr(doctor, "_gpus", lambda: [gpu])
    monkeypatch.setattr(attention_module, "why_not_triton", lambda *_: "")
    text = doctor.format_doctor(doctor.doctor_report())
    assert "attention, packed D=64 bf16 long train on cuda (a GPU): triton (measured 2026-01-02, ms: triton 1.5" in text


def test_the_packages_table_is_well_formed():
    for found in json.loads(attention_table.TABLE.read_text()).values():
        assert {"measured", "torch", "triton", "choices"} <= set(found)
        for choice in found["choices"].values():
            assert choice["backend"] in attention_module.BACKENDS
            assert choice["backend"] in choice["ms"]
