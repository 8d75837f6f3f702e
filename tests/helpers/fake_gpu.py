"""A GPU that is not there: models and tensors on fake CUDA, to trace what is compiled for a GPU on any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from hdxray_fast.ops import attention, native
from hdxray_fast.ops.compiling import constant_result
from hdxray_fast.ops.plan import MaskPlan

DEVICE = torch.device("cuda", 0)
# A PyTorch without CUDA refuses to index even fake tensors on it, or to make the graph of their gradients.
needs_cuda_build = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="this PyTorch was built without CUDA (a build with it needs no GPU here)"
)


@contextmanager
def fake_gpu(monkeypatch, triton: str = "", core: str = "") -> Iterator[FakeTensorMode]:
    """The mode in which tensors of :func:`on_gpu` live.

    Args:
        monkeypatch: pytest's.
        triton: why the Triton kernels cannot run there, if they cannot.
        core: why the native core cannot, if it cannot.
    """
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU that nobody has measured")
    monkeypatch.setattr(attention, "why_not_triton", constant_result(lambda *_: triton))
    monkeypatch.setattr(native, "why_not_native", constant_result(lambda *_: core))
    torch._dynamo.reset()
    with FakeTensorMode() as mode:
        yield mode
    torch._dynamo.reset()


@contextmanager
def autocast_on_gpu(enabled: bool) -> Iterator[None]:
    """``torch.autocast("cuda", torch.bfloat16)``, which does nothing where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", enabled)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)
        torch.clear_autocast_cache()


def on_gpu(mode: FakeTensorMode, value):
    """A tensor, a plan or a model there: shapes, dtypes and strides, no values."""
    if isinstance(value, MaskPlan):
        names = ("keep_ids", "keep_cu_seqlens", "predict_ids", "predict_cu_seqlens")
        return replace(value, **{name: on_gpu(mode, getattr(value, name)) for name in names})
    if isinstance(value, nn.Module):
        for module in value.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    fake = on_gpu(mode, weight)
                    module._parameters[name] = nn.Parameter(fake, weight.requires_grad)
            module._buffers.update({n: on_gpu(mode, b) for n, b in module._buffers.items() if b is not None})
        return value
    with unset_fake_temporarily():
        value = value.detach().to("meta")
    return FakeTensor(mode, value, DEVICE)


def traced(function: Callable, *arguments, dynamic: bool | None = None):
    """What ``function`` gives, compiled, and that it was one graph."""
    counter = CompileCounter()
    result = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)(*arguments)
    assert counter.frame_count == 1
    return result


def check(tensor: Tensor, shape: tuple[int, ...], trains: bool) -> None:
    assert (tuple(tensor.shape), tensor.device, tensor.requires_grad) == (shape, DEVICE, trains)
