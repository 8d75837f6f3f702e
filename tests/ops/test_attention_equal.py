"""Packed sequences that are known to be equally long: by a kernel for dense tensors where that is the faster one."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from attention_helpers import cumulate, definition, definition_lse, packed
from fake_gpu import check, fake_gpu, on_gpu
from plan_helpers import ragged_plan

import hdxray_fast as hx
from hdxray_fast.errors import ArgumentError, ArgumentTypeError
from hdxray_fast.ops import attention as attention_module
from hdxray_fast.ops import attention_torch
from hdxray_fast.ops.attention import attention, faster_dense, resolve_backend

MEASURED = {
    "packed D=64 bf16 long train": "triton",
    "dense D=64 bf16 long train": "cudnn",
    "dense D=64 bf16 long forward": "triton",
    "dense D=32 bf16 long train": "flash",
}


def queries(dim=64, dtype=torch.bfloat16, device="cuda"):
    return SimpleNamespace(device=torch.device(device, 0), dtype=dtype, shape=(12802, 12, dim))


@pytest.fixture
def calls(monkeypatch):
    """The calls that found packed sequences, where a kernel for dense tensors is the faster one."""
    ran, run = [], attention_torch.packed
    monkeypatch.setattr(attention_torch, "packed", lambda *arguments: ran.append("packed") or run(*arguments))
    monkeypatch.setattr(attention_module, "faster_dense", lambda *_: "sdpa")
    return ran


# --- the choice -------------------------------------------------------------------------------------------------------
def test_what_is_faster_for_dense_tensors_is_what_was_measured(monkeypatch):
    monkeypatch.setattr(attention_module, "_measured", lambda index: MEASURED)
    monkeypatch.setattr(attention_module, "why_not_triton", lambda *_: "")
    assert faster_dense(queries(), 6401, True) == "cudnn"
    assert faster_dense(queries(32), 6401, True) == "flash"  # which takes no packed tensors
    assert faster_dense(queries(), 6401, False) == ""  # Triton's, whose packed kernel is the same
    assert faster_dense(queries(), 900, True) == ""  # not measured
    assert faster_dense(queries(), 0, True) == "cudnn"  # long, as far as anybody knows
    assert faster_dense(queries(dtype=torch.float32), 6401, True) == ""
    assert faster_dense(queries(device="cpu"), 6401, True) == ""
    assert resolve_backend("auto", queries(), True, 6401, True) == "triton"  # ragged sequences, as before
    torch.use_deterministic_algorithms(True)
    try:
        assert faster_dense(queries(), 6401, True) == ""
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(attention_module, "_measured", lambda index: {"dense D=64 fp32 long train": "cudnn"})
    assert faster_dense(queries(dtype=torch.float32), 6401, True) == ""  # a kernel that does not take them


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("dynamic", [None, True])
def test_one_graph(monkeypatch, equal, dynamic):
    """The choice is made while a graph is traced; the sizes stay symbols."""
    graphs = []

    def run(q, k, cu, longest):
        sides = {"cu_seqlens_q": cu, "max_seqlen_q": longest, "max_seqlen_k": longest}
        return attention(q, k, k, **sides, return_lse=True, equal_lengths=equal)

    # what PyTorch's own kernel does with its tensors is PyTorch's to trace, and wants a driver
    monkeypatch.setattr(attention_torch, "dense", lambda q, *_: q + 0)
    with fake_gpu(monkeypatch) as mode, torch.no_grad():
        measured = {f"dense D=32 bf16 {length} forward": "cudnn" for length in ("short", "long")}
        monkeypatch.setattr(attention_module, "_measured", lambda index: measured)
        compiled = torch.compile(run, backend=lambda g, _: graphs.append(g) or g, fullgraph=True, dynamic=dynamic)
        cu = on_gpu(mode, torch.zeros(3, dtype=torch.int32))
        for rows in (10, 14, 18, 22) if dynamic else (10,):
            q, k = (on_gpu(mode, torch.zeros(rows, 2, 32, dtype=torch.bfloat16)) for _ in range(2))
            out, lse = compiled(q, k, cu, rows // 2)
            check(out, (rows, 2, 32), False)
            check(lse, (2, rows), False)
    assert len(graphs) == 1
    operators = {node.target for node in graphs[0].graph.nodes}
    assert (torch.ops.hdxray_fast.attention.default in operators) is not equal


# --- the results ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([5, 5, 5], [5, 5, 5]), ([7, 7], [33, 33]), ([65], [1])])
def test_results_are_those_of_the_definition(calls, lengths_q, lengths_k):
    q, k = packed(lengths_q), packed(lengths_k)
    v = torch.randn(sum(lengths_k), 2, *k.shape[1:])[:, 1].requires_grad_()  # rows that are not next to each other
    sides = {"cu_seqlens_q": cumulate(lengths_q), "cu_seqlens_k": cumulate(lengths_k)}
    out, lse = attention(q, k, v, **sides, equal_lengths=True, return_lse=True)
    assert calls == []
    expected = definition(q, k, v, lengths_q, lengths_k)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(lse.double(), definition_lse(q, k, lengths_q, lengths_k), rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(out)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream.double())
    for grad, want in zip(torch.autograd.grad(out, (q, k, v), upstream), wanted, strict=True):
        torch.testing.assert_close(grad, want.float(), rtol=1e-4, atol=5e-6)


def test_ragged_sequences_and_named_backends_are_as_before(calls):
    q, cu = packed([4, 4]), cumulate([4, 4])
    attention(q, q, q, cu_seqlens_q=cu)  # nobody said that they are equally long
    attention(q, q, q, cu_seqlens_q=cu, backend="sdpa", equal_lengths=True)
    attention(q, q, q, cu_seqlens_q=cu, backend="reference", equal_lengths=True)
    nothing = packed([])
    assert attention(nothing, nothing, nothing, cu_seqlens_q=cumulate([]), equal_lengths=True).shape == nothing.shape
    assert calls == ["packed"] * 4


def test_a_wrong_promise_is_told():
    q = packed([4, 4], slack=2).detach()
    for lengths in ([3, 7], [4, 4], [5, 5, 0]):  # ragged; equal, with rows behind them; an empty one
        with pytest.raises(ArgumentError, match=r"^equal_lengths: got True, but cu_seqlens_q"):
            attention(q, q, q, cu_seqlens_q=cumulate(lengths), equal_lengths=True)
    with pytest.raises(ArgumentError, match=r"^equal_lengths: got True, but cu_seqlens_k"):
        attention(q, q, q, cu_seqlens_q=cumulate([5, 5]), cu_seqlens_k=cumulate([4, 6]), equal_lengths=True)
    with pytest.raises(ArgumentTypeError, match=r"^equal_lengths:"):
        attention(q, q, q, cu_seqlens_q=cumulate([5, 5]), equal_lengths=1)


# --- who knows it -----------------------------------------------------------------------------------------------------
def test_a_plan_knows_whether_its_images_have_equally_many():
    grid = torch.ones(2, 4, 4, dtype=torch.bool)
    assert hx.plan_all(grid).equal_counts == (True, False)  # none is predicted
    assert hx.plan_masks(grid, grid, 0.5, 0.5).equal_counts == (True, True)
    assert ragged_plan((4, 4), [5, 5], [3, 2]).equal_counts == (True, False)
    assert ragged_plan((4, 4), [5, 4], [3, 3]).equal_counts == (False, False)
    assert ragged_plan((4, 4), [], []).equal_counts == (False, False)


def test_rows_that_are_slack_are_no_patches():
    """As many rows as there would be in equally long sequences: what sizes alone cannot tell from these."""
    plan = ragged_plan((4, 4), [3, 1], [2, 2])
    slack = replace(plan, keep_ids=torch.nn.functional.pad(plan.keep_ids, (0, 2)))
    assert slack.keep_ids.shape[0] == slack.batch_size * slack.max_keep
    assert slack.equal_counts == (False, False)
    equal = ragged_plan((4, 4), [5, 5], [3, 3])
    assert equal.equal_counts == (True, True)
    assert equal.rounded_up(least=(16, 16)).equal_counts == (False, False)


def test_a_plan_on_a_device_knows_it_from_the_host():
    plan = ragged_plan((4, 4), [5, 5], [3, 3])
    there = plan.to("meta")  # as a GPU, whose values are not looked at
    assert there.equal_counts == (True, True)
    assert pickle.loads(pickle.dumps(plan)).equal_counts == (True, True)  # between processes
    tensors = (there.keep_ids, there.keep_cu_seqlens, there.predict_ids, there.predict_cu_seqlens)
    assert hx.MaskPlan(*tensors, (4, 4), 16, 5, 3).equal_counts == (False, False)


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_models_say_it(calls, decoder):
    model = hx.create_mae(
        "vit_tiny_patch16", decoder=decoder, img_size=64, depth=2, decoder_embed_dim=32, decoder_depth=2
    )
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    plan = ragged_plan((4, 4), [5, 5], [3, 3])
    loss = model(images, plan).loss
    used = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(loss, used)
    assert calls == []
    object.__setattr__(plan, "equal_counts", (False, False))
    expected = model(images, plan).loss
    assert calls == ["packed"] * 4
    torch.testing.assert_close(loss, expected)
    for grad, want in zip(grads, torch.autograd.grad(expected, used), strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-6)

    calls.clear()
    model(images, ragged_plan((4, 4), [5, 5], [3, 2]))  # equally long for the encoder alone
    assert calls == ["packed"] * 2
    calls.clear()
    model(images, ragged_plan((4, 4), [5, 4], [3, 3]))
    assert calls == ["packed"] * 4
