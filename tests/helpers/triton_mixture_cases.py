"""The kernels of mixtures in Triton's interpreter; run by test_triton_kernels.py in a process of its own."""

from __future__ import annotations

import contextlib

import pytest
import torch

from hdxray_fast.ops import mixture
from hdxray_fast.ops.triton import mixture as kernels

SHAPES = [(1, 1, 1, 4), (8, 13, 37, 24), (3, 5, 1024, 1), (8, 13, 700, 6), (5, 2, 3, 8), (2, 3, 0, 8)]


def maps_of(count: int, rows: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(rows, width).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_kernels_give_what_products_give(shape, dtype):
    assert kernels.INTERPRETED
    depth, count, rows, width = shape
    torch.manual_seed(0)
    maps, weights = maps_of(count, rows, width, dtype), torch.randn(depth, count)
    grads = torch.randn(depth, rows, width).to(dtype)
    leaves = [x.float().requires_grad_() for x in maps]
    weight = weights.clone().requires_grad_()
    expected = mixture.mix_maps_ref(leaves, weight) if rows else torch.zeros(depth, rows, width)
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 2e-3, "atol": 2e-2}
    torch.testing.assert_close(kernels.forward(maps, weights, dtype).float(), expected.detach(), **close)
    *grad_maps, grad_weights = kernels.backward(grads, maps, weights)
    if rows:
        expected.backward(grads.float())
        torch.testing.assert_close(grad_weights, weight.grad, rtol=1e-4, atol=1e-2)
        for found, leaf in zip(grad_maps, leaves, strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), leaf.grad, **close)
    else:
        assert not grad_weights.any()


def test_the_operator_takes_maps_of_any_strides_and_gives_the_dtype_asked_for():
    torch.manual_seed(0)
    maps = [torch.randn(6, 9).t().requires_grad_() for _ in range(3)]
    weights = torch.randn(2, 3, requires_grad=True)
    out = torch.ops.hdxray_fast.mix_maps(maps, weights, torch.float16)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), mixture.mix_maps_ref(maps, weights), rtol=1e-3, atol=1e-3)
    out.float().square().sum().backward()
    assert weights.grad.abs().sum() > 0
    assert all(x.grad.shape == x.shape for x in maps)


def test_the_backward_pass_is_deterministic():
    torch.manual_seed(0)
    maps, weights, grads = maps_of(5, 4000, 3, torch.float32), torch.randn(4, 5), torch.randn(4, 4000, 3)
    first, second = (kernels.backward(grads, maps, weights) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_launches_are_on_the_device_of_the_maps(monkeypatch):
    """Triton launches on the current device, which is another one's in a process that has several."""
    inside, launched = [], []

    @contextlib.contextmanager
    def on_device_of(tensor):
        inside.append(tensor.shape)
        yield
        inside.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, **__: launched.append(list(inside))

    monkeypatch.setattr(kernels, "on_device_of", on_device_of)
    for name in ("mix_kernel", "mix_backward_kernel"):
        monkeypatch.setattr(kernels, name, Kernel())
    maps, weights = maps_of(3, 5, 2, torch.float32), torch.randn(2, 3)
    kernels.backward(kernels.forward(maps, weights, torch.float32), maps, weights)
    assert launched == [[(2, 5, 2)], [(2, 5, 2)]]
