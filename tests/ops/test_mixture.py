"""Mixtures of feature maps: the product of weights and stacked maps, by an operator that stacks nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from hdxray_fast.models.decoder import CrossDecoder
from hdxray_fast.ops.mixture import mix_maps, mix_maps_ref

MIX = torch.ops.hdxray_fast.mix_maps
HELPERS = Path(__file__).parents[1] / "helpers"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (it comes with CUDA builds of PyTorch)"
)


def maps_of(count: int = 5, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(7, 6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def test_on_the_cpu_it_is_the_product():
    maps, weights = maps_of(), torch.randn(3, 5)
    expected = (weights @ torch.stack(maps).flatten(1)).view(3, 7, 6)
    assert torch.equal(mix_maps(maps, weights), expected)
    torch.testing.assert_close(MIX(maps, weights, torch.float32), expected)


@pytest.mark.parametrize("which", [0, 3, 5])
def test_gradients_of_the_operator(which):
    """Of one map at a time, and of the weights."""
    maps, weights = maps_of(dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    everything = [*maps, weights]

    def function(leaf):
        given = [leaf if index == which else tensor for index, tensor in enumerate(everything)]
        return MIX(given[:-1], given[-1], torch.float64)

    assert gradcheck(function, everything[which].clone().requires_grad_())


@pytest.mark.parametrize("autocast", [False, True])
def test_the_operator_is_the_product_under_autocast_too(autocast):
    """As a GPU has it: the dtype of the result is that of a product; sums are of full precision."""
    maps = [x.requires_grad_() for x in maps_of()]
    weights = torch.randn(3, 5, requires_grad=True)
    grads = torch.randn(3, 7, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = mix_maps_ref(maps, weights)
        found = MIX(maps, weights, torch.bfloat16 if autocast else torch.float32)
    assert found.dtype == expected.dtype
    close = {"rtol": 2e-2, "atol": 5e-2} if autocast else {}
    torch.testing.assert_close(found, expected, **close)
    ours = torch.autograd.grad(found, [*maps, weights], grads.to(found.dtype))
    theirs = torch.autograd.grad(expected, [*maps, weights], grads.to(found.dtype))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **close)


def test_a_decoder_is_the_same_by_the_operator(monkeypatch):
    """Loss and gradients of a decoder that mixes by the operator, compiled into one graph."""
    from hdxray_fast.models import decoder

    torch.manual_seed(0)
    model = CrossDecoder(6, (2, 2), 4, num_maps=5, embed_dim=8, depth=3, num_heads=2)

    def mixed(mix):
        monkeypatch.setattr(decoder, "mix_maps", mix)
        maps = [x.requires_grad_() for x in maps_of()]
        mixtures = decoder.mix_maps(maps, model.wfm)
        total = sum(norm(m).square().mean() for norm, m in zip(model.dec_norms, mixtures.unbind(), strict=True))
        return [total, *torch.autograd.grad(total, [*maps, model.wfm])]

    expected = mixed(mix_maps_ref)
    for found in (mixed(lambda maps, weights: MIX(maps, weights, torch.float32)),):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    compiled = torch.compile(lambda maps, w: MIX(maps, w, torch.float32).sin(), backend="aot_eager", fullgraph=True)
    maps = maps_of()
    torch.testing.assert_close(compiled(maps, model.wfm), mix_maps_ref(maps, model.wfm).sin())


def test_flops_are_those_of_the_product():
    maps, weights = [x.requires_grad_() for x in maps_of()], torch.randn(3, 5, requires_grad=True)
    counts = []
    for mix in (mix_maps_ref, lambda maps, weights: MIX(maps, weights, torch.float32)):
        with FlopCounterMode(display=False) as counter:
            mix(maps, weights).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 3 * 5 * 42


@needs_triton
@pytest.mark.slow
def test_kernels_compile_and_spill_nothing():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(HELPERS / "triton_mixture_launches.py")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-3000:]
    rows = json.loads(found.stdout.splitlines()[-1])
    assert {(row["kernel"], row["arch"]) for row in rows} == {
        (kernel, arch) for kernel in ("mix_kernel", "mix_backward_kernel") for arch in ("sm80", "sm90", "sm100")
    }
    # Triton 3.6 leaves one address of the backward kernel on the stack of an sm_80, around its loop
    assert all(row["spill_moves"] <= 3 and row["stack_bytes"] <= 8 for row in rows)
    variants = {(row["kernel"], row["arch"], row["hash"]) for row in rows}
    assert len(variants) <= 2 * 3 * 3  # a kernel an architecture, dtype and number of maps: any number of tokens
