"""FLOPs of the operators, as PyTorch's counter counts those of timm's ViT of the same shape."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from attention_helpers import cumulate, packed
from plan_helpers import ragged_plan
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import hdxray_fast as hx
from hdxray_fast.ops.attention import attention

ATTENTION = torch.ops.hdxray_fast.attention
BACKWARD = torch.ops.hdxray_fast.attention_backward


def count(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def sides(lengths_q, lengths_k):
    return cumulate(lengths_q), cumulate(lengths_k), 0, 0


def test_packed_sequences_count_by_their_lengths():
    lengths_q, lengths_k = [3, 0, 5], [4, 7, 1]
    q, k, v = (packed(n, 2, 8) for n in (lengths_q, lengths_k, lengths_k))
    pairs = sum(a * b for a, b in zip(lengths_q, lengths_k, strict=True))
    with FlopCounterMode(display=False) as counter:
        out, _ = ATTENTION(q, k, v, *sides(lengths_q, lengths_k), 0.3, "sdpa", False)
    assert counter.get_total_flops() == 2 * (2 * pairs * 2 * 8)  # Q K^T and P V
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_flop_counts()["Global"] == {BACKWARD: 5 * (2 * pairs * 2 * 8)}


def test_without_values_sequences_count_as_equally_long():
    q, cu = torch.empty(12, 2, 8, device="meta"), torch.empty(4, dtype=torch.int32, device="meta")
    equal = 2 * (2 * 3 * 4 * 4 * 2 * 8)
    assert count(lambda: attention(q, q, q, cu_seqlens_q=cu)) == equal
    with FakeTensorMode():
        q, cu = torch.empty(12, 2, 8), torch.empty(4, dtype=torch.int32)
        assert count(lambda: ATTENTION(q, q, q, cu, cu, 0, 0, 0.3, "triton", False)) == equal
        assert count(lambda: ATTENTION(q, q, q, None, None, 4, 4, 0.3, "triton", False)) == equal


def test_forward_and_backward_are_those_of_timms_vit(plain_mae, monkeypatch):
    """Every patch of two images, with our operator as in a compiled model, against timm's, with PyTorch's attention."""
    timm = plain_mae.import_timm()
    if timm is None:
        pytest.skip("timm is not installed")
    shape = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
    plain = timm.VisionTransformer(in_chans=1, num_classes=0, global_pool="", **shape)
    ours = hx.create_encoder("vit_tiny_patch16", **shape)
    plan = ragged_plan((4, 4), [16, 16], [0, 0])
    pixels = torch.randn(2, 1, 64, 64)
    # PyTorch counts its attention on GPUs, on the CPU from 2.15 on only: here as on GPUs
    aten = torch.ops.aten
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FlopCounterMode(display=False) as counter:
        out = ours(pixels, plan).values
        forward = counter.get_total_flops()
        out.sum().backward()
    assert counter.get_flop_counts()["Global"][ATTENTION] > 0
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as plain_counter:
        out = plain(pixels)
        plain_forward = plain_counter.get_total_flops()
        out.sum().backward()
    assert forward == plain_forward
    assert counter.get_total_flops() == plain_counter.get_total_flops()


def test_who_does_not_count_imports_neither_counter_nor_triton():
    code = (
        "import sys, torch, hdxray_fast.ops.attention, hdxray_fast.ops.loss;"
        "print([m for m in ('triton', 'torch.utils.flop_counter') if m in sys.modules]);"
        "from torch.utils.flop_counter import flop_registry as known;"
        "ops = torch.ops.hdxray_fast;"
        "print(all(op in known for op in (ops.attention, ops.attention_backward, ops.reconstruction_loss)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.splitlines() == ["[]", "True"], found.stderr
