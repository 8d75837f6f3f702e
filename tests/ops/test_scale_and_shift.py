"""Numbers as scale and shift: tensors under a compiler, so that one graph holds for all; elsewhere what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plan_helpers import ragged_plan
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import hdxray_fast as hx
from hdxray_fast.images.standardise import standardisation
from hdxray_fast.ops import native

pytestmark = pytest.mark.skipif(native.core is None, reason=f"the native core is not built: {native.why_missing}")
PLAN = ragged_plan((2, 2), [3, 2], [1, 2])
IMAGES, PRED = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8), torch.randn(3, 256)
ENCODER = hx.create_encoder("vit_tiny_patch16", img_size=32, depth=1, embed_dim=64, num_heads=1, pool="cls")
CALLS = {
    "gather": lambda scale, shift: hx.gather_patches(IMAGES, PLAN, scale, shift),
    "gather-reference": lambda scale, shift: hx.gather_patches(IMAGES, PLAN, scale, shift, backend="reference"),
    "loss": lambda scale, shift: hx.reconstruction_loss(IMAGES, PRED, PLAN, scale, shift)[0],
    "encoder": lambda scale, shift: ENCODER(IMAGES, PLAN, scale, shift),
}


def eight_radiographs() -> list[tuple[float, float]]:
    rng = np.random.default_rng(0)
    grey = [rng.integers(0, 50 + 20 * i, (32, 32)).astype(np.uint8) for i in range(8)]
    return [standardisation(pixels, np.ones((2, 2), bool)) for pixels in grey]


def compilations(call, values, counter, **options) -> list[int]:
    """Graphs after each of the values; each result is that of the call that is not compiled."""
    torch._dynamo.reset()
    compiled, counts = torch.compile(call, backend=counter, fullgraph=True, **options), []
    for scale, shift in values:
        torch.testing.assert_close(compiled(scale, shift), call(scale, shift))
        counts.append(counter.frame_count)
    return counts


@pytest.mark.parametrize("name", CALLS)
def test_one_compilation_serves_all_values(name):
    values = eight_radiographs()
    tensors = [(torch.tensor(scale), torch.tensor(shift)) for scale, shift in values]
    assert compilations(CALLS[name], tensors, CompileCounter())[-1] == 1
    assert compilations(CALLS[name], values, CompileCounter(), dynamic=True)[-1] == 1


@pytest.mark.parametrize("name", ["gather", *(pytest.param(n, marks=pytest.mark.slow) for n in ("loss", "encoder"))])
def test_a_compiler_that_is_told_nothing_takes_the_first_number_for_a_constant_and_no_other(name):
    counts = compilations(CALLS[name], eight_radiographs(), CompileCounterWithBackend("aot_eager"))
    assert counts[0] == 1
    assert counts[-1] == counts[1] == 2


class Operators(TorchDispatchMode):
    """Counts what PyTorch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["gather", "loss"])
def test_a_number_costs_no_kernel(name):
    with Operators() as run:
        CALLS[name](1 / 64, -2.0)
    wanted = {"gather": "gather_patches", "loss": "reconstruction_loss"}[name]
    assert [n for n in run.names if "detach" not in n] == [f"hdxray_fast.{wanted}.default"]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("value", [3, -0.1, 1e-30, 3e38, 10**30])
def test_a_number_is_what_it_is_in_float32(value, backend):
    images = torch.ones(2, 1, 32, 32)
    scaled = hx.gather_patches(images, PLAN, value, backend=backend)
    shifted = hx.gather_patches(torch.zeros_like(images), PLAN, 1.0, value, backend=backend)
    assert torch.equal(scaled, torch.full_like(scaled, float(value)))
    assert torch.equal(shifted, scaled)
