"""Arguments of every registered operator, floats that have gradients with requires_grad."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import torch
from attention_helpers import cumulate, packed
from plan_helpers import make_plan
from torch import Tensor

from hdxray_fast import ops

for module in pkgutil.iter_modules(ops.__path__):
    if not module.ispkg:
        importlib.import_module(f"{ops.__name__}.{module.name}")

LIBRARY = "hdxray_fast::"
REGISTERED = sorted(
    name.removeprefix(LIBRARY) for name in torch._C._dispatch_get_all_op_names() if name.startswith(LIBRARY)
)
PLAN = make_plan([[0, 3], [], [1]], [[1], [2, 3], [0, 2]], (2, 2), 2)
SCALE, SHIFT = torch.tensor([0.5, 2.0, -1.5]), torch.tensor([0.25, 0.0, 1.0])


def operator(name: str):
    return getattr(torch.ops.hdxray_fast, name)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 1, 4, 4).to(dtype).requires_grad_()


def packed_pixels(ids: Tensor, cu_seqlens: Tensor) -> Tensor:
    return torch.arange(4 * ids.numel(), dtype=torch.uint8).reshape(-1, 1, 2, 2)


def keep() -> tuple[Tensor, Tensor]:
    return PLAN.keep_ids, PLAN.keep_cu_seqlens


def predict() -> tuple[Tensor, Tensor]:
    return PLAN.predict_ids, PLAN.predict_cu_seqlens


# --- samples: arguments of each operator, floats that have gradients with requires_grad -------------------------------
def gather_samples() -> list[tuple]:
    return [
        (images(), *keep(), SCALE, SHIFT, 1.0, 0.0, 2, torch.float32, "keep"),
        (images(torch.bfloat16), *predict(), None, None, 0.5, 1.0, 2, torch.float16, "predict"),
        (images().detach().mul(99).to(torch.uint8), *keep(), SCALE, None, 1.0, 1.0, 2, torch.bfloat16, "keep"),
        (packed_pixels(*keep()), *keep(), SCALE, None, 1.0, 1.0, 2, torch.bfloat16, "keep", [2, 2]),
    ]


def view_samples() -> list[tuple]:
    affine = torch.tensor([[[0.9, 0.1, 0.2], [-0.1, 1.1, 0.3]]]).repeat(3, 1, 1)
    bytes_, table = images().detach().mul(99).to(torch.uint8), torch.arange(256, dtype=torch.uint8).expand(3, 256)
    return [
        (images().detach(), *keep(), affine, None, 2, "keep"),
        (bytes_, *predict(), affine, table.contiguous(), 2, "predict"),
    ]


def scatter_samples() -> list[tuple]:
    rows = torch.randn(3, 4, requires_grad=True)
    return [
        (rows, *keep(), SCALE, 1.0, [3, 1, 4, 4], 2, torch.float32),
        (rows.detach().t().contiguous().t(), *keep(), None, 0.5, [3, 1, 4, 4], 2, torch.bfloat16),
    ]


def loss_samples() -> list[tuple]:
    pred = torch.randn(5, 4, requires_grad=True)
    strided = pred.detach().t().contiguous().t().requires_grad_()
    return [
        (images().detach(), pred, *predict(), SCALE, SHIFT, 1.0, 0.0, 2, True, True, None),
        (images().detach(), pred, *predict(), None, None, 0.5, 1.0, 2, False, False, None),
        (images().detach(), strided, *predict(), SCALE, None, 1.0, 0.5, 2, True, True, None),
        (images().detach(), strided.detach(), *predict(), SCALE, None, 1.0, 0.5, 2, True, False, None),
        (packed_pixels(*predict()), pred, *predict(), SCALE, None, 1.0, 0.5, 2, True, True, [2, 2]),
    ]


def loss_backward_samples() -> list[tuple]:
    samples = []
    for pixels, pred, ids, cu, scale, shift, *values, _, grid in loss_samples():
        samples.append((pixels, pred.detach(), ids, cu, scale, shift, torch.tensor(2.0), *values, grid))
    return samples


def scale_loss_gradient_samples() -> list[tuple]:
    cu = predict()[1]
    return [(torch.randn(5, 4).to(dtype), cu, torch.tensor(2.0)) for dtype in (torch.float32, torch.bfloat16)]


def attention_samples() -> list[tuple]:
    q, k, v = (packed(n, 2, 8, torch.float64) for n in ([3, 0, 5], [4, 2, 1], [4, 2, 1]))
    sides = (cumulate([3, 0, 5]), cumulate([4, 2, 1]), 5, 4)
    nothing = packed([0, 0], 2, 8, torch.float64)
    return [
        (q, k, v, *sides, 0.3, "sdpa", True),
        (q, k, v, *sides, 0.3, "reference", False),
        (q, nothing, nothing, sides[0], cumulate([0, 0, 0]), 0, 0, 0.3, "sdpa", True),
        (q.float().detach().half(), *(t.float().detach().half() for t in (k, v)), *sides, 0.3, "sdpa", True),
    ]


def attention_backward_samples() -> list[tuple]:
    samples = []
    for q, k, v, *sides, scale, backend, _ in attention_samples():
        tensors = tuple(t.detach() for t in (q, k, v))
        out, lse = operator("attention")(*tensors, *sides, scale, backend, True)
        strided = torch.randn(*out.shape[:2], 2 * out.shape[2], dtype=out.dtype)[..., ::2]
        samples.append((strided, *tensors, out, lse, *sides, scale, backend))
    return samples


def mixture_samples() -> list[tuple]:
    maps = [torch.randn(4, 3, dtype=torch.float64) for _ in range(5)]
    weights = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    strided = [torch.randn(3, 4).t() for _ in range(2)]
    return [
        (maps, weights, torch.float64),
        (strided, torch.randn(3, 2), torch.bfloat16),
    ]


def mixture_backward_samples() -> list[tuple]:
    samples = []
    for maps, weights, dtype in mixture_samples():
        grads = torch.randn(weights.shape[0], *maps[0].shape).to(dtype)
        samples.append((grads, maps, weights.detach()))
    return samples


SAMPLES: dict[str, Callable[[], list[tuple]]] = {
    "attention": attention_samples,
    "attention_backward": attention_backward_samples,
    "gather_patches": gather_samples,
    "gather_patches_backward": scatter_samples,
    "mix_maps": mixture_samples,
    "mix_maps_backward": mixture_backward_samples,
    "reconstruction_loss": loss_samples,
    "reconstruction_loss_backward": loss_backward_samples,
    "scale_loss_gradient": scale_loss_gradient_samples,
    "view_patches": view_samples,
}
