"""Every op that has GPU code, once, on a few odd sizes: small enough to run under compute-sanitizer.

On the CPU the same tests run the CPU's paths. The last ones hand the GPU values that no caller should: whatever ids and
cu_seqlens hold, kernels stay inside their buffers, which the sanitizer sees and nobody else.
"""

from __future__ import annotations

import pytest
import torch
from plan_helpers import ragged_plan

import hdxray_fast as hx
from hdxray_fast.ops.attention import attention_ref
from hdxray_fast.ops.gather import gather_patches_ref
from hdxray_fast.ops.loss import reconstruction_loss_ref
from hdxray_fast.ops.plan import MaskPlan

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.sanitize,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
GRID, PATCH, KEPT, PREDICTED = (5, 7), 16, [3, 0, 35, 1], [9, 35, 0, 2]


def images_of(
    dtype: torch.dtype, device: str, channels: int = 1, patch: int = PATCH
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[4, C, H, W]`` on the CPU and on `device`, cut out of wider tensors: rows are not next to each other."""
    size = (len(KEPT), channels, GRID[0] * patch, GRID[1] * patch + 16)
    wide = torch.randn(size) if dtype.is_floating_point else torch.randint(0, 255, size, dtype=torch.int32)
    wide = wide.to(dtype)
    return wide[..., : GRID[1] * patch], wide.to(device)[..., : GRID[1] * patch]


def cu_seqlens(lengths: list[int], device: str) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", ["contour", "random", "rectangle", "block"])
def test_mask_plan(device, strategy):
    inside, valid = torch.rand(4, *GRID) < 0.5, torch.rand(4, *GRID) < 0.9
    valid[1] = False
    options = {"strategy": strategy, "predict": 0.3, "seed": 2**63 + 5, "epoch": 7, "index": [3, 2**40, 0, 9]}
    expected = hx.plan_masks(inside, valid, 0.6, 0.4, backend="reference", **options)
    bounds = {"max_keep": 20, "max_predict": 20} if device == "cuda" else {}
    for more in ({}, bounds):
        plan = hx.plan_masks(inside.to(device), valid.to(device), 0.6, 0.4, **options, **more)
        assert plan.device.type == device
        plan = plan.to("cpu")
        for name in ("keep_ids", "keep_cu_seqlens", "predict_ids", "predict_cu_seqlens"):
            assert torch.equal(getattr(plan, name), getattr(expected, name)), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("channels", "patch"), [(1, 16), (3, 16), (1, 6)])
def test_gather_and_its_gradient(device, dtype, channels, patch):
    plan = ragged_plan(GRID, KEPT, PREDICTED, patch)
    images, there = images_of(dtype, device, channels, patch)
    shift = torch.tensor([0.5, -1.0, 2.0, 0.0])
    expected = gather_patches_ref(images, plan, 0.25, shift, torch.float32, "keep")
    there = there.detach().requires_grad_(dtype.is_floating_point)
    rows = hx.gather_patches(there, plan.to(device), 0.25, shift.to(device))
    assert torch.equal(rows.cpu(), expected)
    if dtype is torch.float32:
        weights = torch.randn_like(expected)
        (grad,) = torch.autograd.grad(rows, there, weights.to(device))
        leaf = images.clone().requires_grad_()
        (ref,) = torch.autograd.grad(gather_patches_ref(leaf, plan, 0.25, shift, torch.float32, "keep"), leaf, weights)
        torch.testing.assert_close(grad.cpu(), ref)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_its_gradient(device, dtype, norm_pix_loss):
    plan, (images, images_there) = ragged_plan(GRID, KEPT, PREDICTED), images_of(torch.uint8, device)
    pred = torch.randn(sum(PREDICTED), PATCH**2).to(dtype)
    ref_pred = pred.float().requires_grad_()
    ref, _ = reconstruction_loss_ref(images, ref_pred, plan, 1 / 64, -2.0, norm_pix_loss)
    (ref_grad,) = torch.autograd.grad(ref, ref_pred)
    there = pred.to(device).requires_grad_()
    loss, patch_loss = hx.reconstruction_loss(
        images_there, there, plan.to(device), 1 / 64, -2.0, norm_pix_loss=norm_pix_loss
    )
    (grad,) = torch.autograd.grad(loss, there)
    torch.testing.assert_close(loss.detach().cpu(), ref.detach(), rtol=1e-5, atol=1e-6)
    assert patch_loss.shape == (sum(PREDICTED),)
    torch.testing.assert_close(grad.cpu().float(), ref_grad, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("device", "head_dim", "dtype"),
    [
        ("cpu", 32, torch.bfloat16),
        ("cpu", 80, torch.float32),
        pytest.param("cuda", 32, torch.bfloat16, marks=ON_GPU),
        pytest.param("cuda", 80, torch.float32, marks=ON_GPU),
    ],
)
def test_attention_and_its_gradients(device, head_dim, dtype):
    lengths_q, lengths_k = [1, 63, 0, 65], [65, 2, 7, 129]
    qkv = [torch.randn(sum(n), 2, head_dim).to(dtype) for n in (lengths_q, lengths_k, lengths_k)]
    grad_out = torch.randn(sum(lengths_q), 2, head_dim).to(dtype)

    def one_by_one(tensors: list[torch.Tensor]) -> torch.Tensor:
        parts = zip(*[t.split(n) for t, n in zip(tensors, (lengths_q, lengths_k, lengths_k), strict=True)], strict=True)
        return torch.cat([attention_ref(*(t[None] for t in part), head_dim**-0.5)[0] for part in parts])

    def with_gradients(attend, tensors: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
        tensors = [t.detach().requires_grad_() for t in tensors]
        out = attend(tensors)
        return [t.cpu() for t in (out, *torch.autograd.grad(out, tensors, grad))]

    cu_q, cu_k = cu_seqlens(lengths_q, device), cu_seqlens(lengths_k, device)
    backend = "triton" if device == "cuda" else "sdpa"

    def ours(tensors: list[torch.Tensor]) -> torch.Tensor:
        options = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": 65, "max_seqlen_k": 129}
        return hx.attention(*tensors, **options, backend=backend)

    found = with_gradients(ours, [t.to(device) for t in qkv], grad_out.to(device))
    exact = with_gradients(one_by_one, [t.float() for t in qkv], grad_out.float())
    for out, ref in zip(found, exact, strict=True):
        assert (out.double() - ref.double()).norm() <= (1e-2 if dtype is torch.bfloat16 else 1e-5) * ref.double().norm()


# --- values that no caller should hand over ---------------------------------------------------------------------------
HOSTILE_CU = [[0, 2**31 - 1, -5, 7, 2**30], [9, 3, 1, 0, -1], [0, 0, 0, 0, 0], [2**31 - 1] * 5]


@pytest.mark.gpu
@pytest.mark.sanitize
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("bounds", HOSTILE_CU, ids=str)
def test_pixel_kernels_stay_inside_whatever_a_plan_holds(bounds):
    ids = torch.tensor([-1, 0, 34, 35, 2**31 - 1, -(2**31), 7, 7, 3], dtype=torch.int32, device="cuda")
    cu = torch.tensor(bounds, dtype=torch.int32, device="cuda")
    plan = MaskPlan(ids, cu, ids.clone(), cu.clone(), GRID, PATCH, 35, 35)
    images = images_of(torch.float32, "cuda")[1].detach().requires_grad_()
    rows = hx.gather_patches(images, plan)
    assert rows.shape == (9, PATCH**2)
    assert not rows[[0, 3, 4, 5]].any()  # there is no such patch
    (grad,) = torch.autograd.grad(rows.sum(), images)
    assert grad.shape == images.shape
    pred = torch.randn(9, PATCH**2, device="cuda", requires_grad=True)
    loss, _ = hx.reconstruction_loss(images.detach(), pred, plan)
    (grad,) = torch.autograd.grad(loss, pred)
    assert grad.shape == pred.shape
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.sanitize
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("bounds", HOSTILE_CU, ids=str)
def test_attention_kernels_stay_inside_whatever_cu_seqlens_holds(bounds):
    q, k, v = (torch.randn(n, 2, 64, device="cuda").bfloat16().requires_grad_() for n in (70, 90, 90))
    cu = torch.tensor(bounds, dtype=torch.int32, device="cuda")
    out = hx.attention(
        q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu.clone(), max_seqlen_q=70, max_seqlen_k=90, backend="triton"
    )
    grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert [g.shape for g in grads] == [t.shape for t in (q, k, v)]
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.sanitize
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_plan_with_slack_goes_through_all_pixel_ops():
    inside = torch.ones(3, *GRID, dtype=torch.bool, device="cuda")
    plan = hx.plan_masks(inside, inside, 0.6, predict=0.5, max_keep=20, max_predict=15)
    exact = plan.to("cpu")
    assert plan.keep_ids.shape[0] == 60 > exact.keep_ids.shape[0]
    images, there = (t[:3] for t in images_of(torch.uint8, "cuda"))
    rows = hx.gather_patches(there, plan).cpu()
    real = exact.keep_ids.shape[0]
    assert torch.equal(rows[:real], gather_patches_ref(images, exact))
    assert not rows[real:].any()
    pred = torch.randn(plan.predict_ids.shape[0], PATCH**2)
    pred_there = pred.cuda().requires_grad_()
    loss, patch_loss = hx.reconstruction_loss(there, pred_there, plan)
    (grad,) = torch.autograd.grad(loss, pred_there)
    real = exact.predict_ids.shape[0]
    ref, _ = reconstruction_loss_ref(images, pred[:real], exact)
    torch.testing.assert_close(loss.detach().cpu(), ref, rtol=1e-5, atol=1e-6)
    assert not grad[real:].any()
    assert not patch_loss[real:].any()
