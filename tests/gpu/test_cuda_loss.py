"""Reconstruction loss on a GPU: the CPU's values and gradients, the same bits on every run, without waiting."""

from __future__ import annotations

from dataclasses import replace

import plan_helpers
import pytest
import torch
from pixel_helpers import FLOATS, PIXELS
from plan_helpers import make_plan, ragged_plan
from tolerances import assert_two_times_rule

import hdxray_fast as hx
from hdxray_fast.ops import native
from hdxray_fast.ops.loss import _loss_backward_op, _loss_op, _scale_op, reconstruction_loss_ref

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
DEVICE = "cuda"


def case(patch: int, channels: int, dtype: torch.dtype, pred_dtype: torch.dtype = torch.float32):
    """Images, predictions and a plan on a 3 x 5 grid, on the CPU; the middle image predicts nothing."""
    plan = ragged_plan((3, 5), [4, 3, 1], [11, 0, 13], patch)
    shape = (3, channels, 3 * patch, 5 * patch)
    if dtype.is_floating_point:
        images = torch.randn(shape).to(dtype)
    else:
        images = torch.randint(0, 256 if dtype == torch.uint8 else 65536, shape, dtype=torch.int32).to(dtype)
    return images, torch.randn(24, channels * patch**2).to(pred_dtype), plan


def scaling(dtype: torch.dtype, device: str = DEVICE) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale and shift per image, so that targets are of order one."""
    unit = {torch.uint8: 1 / 64, torch.uint16: 1 / 16384}.get(dtype, 1.0)
    values = [unit, 0.5 * unit, 1.5 * unit], [-2.0, 0.0, 0.25]
    return tuple(torch.tensor(v, device=device) for v in values)


def with_slack(plan: hx.MaskPlan, predict: int) -> hx.MaskPlan:
    """The plan on the GPU, with room for more predictions than are real."""
    return plan_helpers.with_slack(plan, 0, predict).to(DEVICE)


def loss_and_grad(function, images, pred, plan, *arguments, **options):
    pred = pred.detach().requires_grad_()
    loss, patch_loss = function(images, pred, plan, *arguments, **options)
    return loss.detach(), patch_loss, torch.autograd.grad(loss, pred)[0]


@pytest.fixture(autouse=True)
def _errors_show_in_the_test_that_makes_them():
    yield
    torch.cuda.synchronize()


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize(
    ("patch", "channels"), [(16, 1), (2, 1), (7, 1), (8, 1), (14, 1), (16, 3), (8, 3), (32, 1), (64, 1)]
)
def test_loss_and_gradient_keep_the_two_times_rule(patch, channels, norm_pix_loss):
    for dtype in PIXELS:
        for pred_dtype in FLOATS:
            images, pred, plan = case(patch, channels, dtype, pred_dtype)
            there = [v.to(DEVICE) for v in (images, pred, plan)]
            ours = loss_and_grad(hx.reconstruction_loss, *there, *scaling(dtype), norm_pix_loss)
            same = loss_and_grad(reconstruction_loss_ref, *there, *scaling(dtype), norm_pix_loss)
            wide = (images.double(), pred.double(), plan)
            exact = loss_and_grad(reconstruction_loss_ref, *wide, *scaling(dtype, "cpu"), norm_pix_loss)
            assert ours[0].dtype == ours[1].dtype == torch.float32
            assert ours[2].dtype == pred_dtype
            for out, pytorch, truth in zip(ours, same, exact, strict=True):
                scale = truth.abs().max().item()
                assert_two_times_rule(out.cpu() / scale, pytorch.cpu() / scale, truth / scale, tiny=2e-6)


def test_unaligned_images_and_predictions():
    for dtype in PIXELS:
        for pred_dtype in FLOATS:
            images, pred, plan = case(16, 1, dtype, pred_dtype)
            expected = loss_and_grad(hx.reconstruction_loss, images, pred, plan, *scaling(dtype, "cpu"))
            window = torch.zeros(3, 2, 60, 101, dtype=dtype, device=DEVICE)
            window[:, 1:, 5:53, 7:87] = images.to(DEVICE)
            flat = torch.zeros(24 * 256 + 16, dtype=pred_dtype, device=DEVICE)
            flat[1 : 24 * 256 + 1] = pred.flatten().to(DEVICE)
            odd = flat[1 : 24 * 256 + 1].view(24, 256)
            arguments = (window[:, 1:, 5:53, 7:87], odd, plan.to(DEVICE), *scaling(dtype))
            got = loss_and_grad(hx.reconstruction_loss, *arguments)
            for a, b in zip(got, expected, strict=True):
                tolerance = 1e-5 if b.dtype == torch.float32 else 1e-2
                torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=1e-7)


def test_full_size_images():
    """Ten thousand predictions: both stages of the reduction have work."""
    plan = ragged_plan((80, 80), [641, 0, 700, 641], [5759, 0, 1440, 3000], 16)
    images = torch.randint(0, 256, (4, 1, 1280, 1280), dtype=torch.uint8)
    pred = torch.randn(10199, 256, device=DEVICE).bfloat16()
    got = loss_and_grad(hx.reconstruction_loss, images.to(DEVICE), pred, plan.to(DEVICE), 1 / 64, -2.0)
    loss, patch_loss, grad = loss_and_grad(hx.reconstruction_loss, images, pred.cpu(), plan, 1 / 64, -2.0)
    torch.testing.assert_close(got[0].cpu(), loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(got[1].cpu(), patch_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[2].cpu(), grad, rtol=1e-2, atol=1e-9)
    assert got[0].item() == pytest.approx(got[1].double().mean().item(), rel=1e-7)


def test_every_run_gives_the_same_bits():
    plan = ragged_plan((80, 80), [641, 700], [5000, 4000], 16).to(DEVICE)
    images = torch.randint(0, 256, (2, 1, 1280, 1280), dtype=torch.uint8, device=DEVICE)
    pred = torch.randn(9000, 256, device=DEVICE).bfloat16()
    first = loss_and_grad(hx.reconstruction_loss, images, pred, plan, 1 / 64, -2.0)
    for _ in range(5):
        again = loss_and_grad(hx.reconstruction_loss, images, pred, plan, 1 / 64, -2.0)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_flat_patches_are_finite():
    images = torch.full((1, 1, 32, 32), 65535, dtype=torch.int32).to(torch.uint16).to(DEVICE)
    plan = make_plan([[0]], [[1, 2, 3]], (2, 2)).to(DEVICE)
    pred = torch.ones(3, 256, device=DEVICE)
    loss, _, grad = loss_and_grad(hx.reconstruction_loss, images, pred, plan, 1 / 255.0, -100.0)
    assert loss.item() == pytest.approx(1.0)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_nothing_predicted_is_a_loss_of_zero_with_zero_gradient(backend):
    images = torch.zeros(2, 1, 32, 32, dtype=torch.uint8, device=DEVICE)
    plan = make_plan([[0], []], [[], []], (2, 2))
    for empty, rows in ((plan.to(DEVICE), 0), (with_slack(plan, 5), 5)):
        weight = torch.ones(256, device=DEVICE, requires_grad=True)
        pred = torch.ones(rows, 256, device=DEVICE) * weight
        loss, patch_loss = hx.reconstruction_loss(images, pred, empty, backend=backend)
        loss.backward()
        assert loss.item() == 0.0
        assert patch_loss.shape == (rows,)
        assert torch.equal(weight.grad, torch.zeros(256, device=DEVICE))


def test_gradient_follows_what_comes_after():
    images, pred, plan = (v.to(DEVICE) for v in case(14, 3, torch.uint8))
    pred.requires_grad_()
    (plain,) = torch.autograd.grad(hx.reconstruction_loss(images, pred, plan, 1 / 64)[0], pred)
    (scaled,) = torch.autograd.grad(hx.reconstruction_loss(images, pred, plan, 1 / 64)[0] * -2048.0, pred)
    assert torch.equal(scaled, plain * -2048.0)


@pytest.mark.sanitize
@pytest.mark.parametrize("pred_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("upstream", [1.0, 0.37, 65536.0])
def test_the_gradient_is_handed_out_once_and_is_right_again(pred_dtype, upstream):
    """By the kernel that scales in place at first, by the whole pass after; slack is zero either way."""
    images, pred, plan = case(16, 1, torch.uint8, pred_dtype)
    wide = torch.cat([pred, pred[:7]]).to(DEVICE).requires_grad_()
    loss, _ = hx.reconstruction_loss(images.to(DEVICE), wide, with_slack(plan, 7), *scaling(torch.uint8))
    pred.requires_grad_()
    exact, _ = hx.reconstruction_loss(images, pred, plan, *scaling(torch.uint8, "cpu"))
    (expected,) = torch.autograd.grad(exact, pred, torch.tensor(upstream))
    for _ in range(3):
        (grad,) = torch.autograd.grad(loss, wide, torch.tensor(upstream, device=DEVICE), retain_graph=True)
        tolerance = 1e-5 if pred_dtype == torch.float32 else 1e-2
        torch.testing.assert_close(grad[:24].cpu(), expected, rtol=tolerance, atol=tolerance * upstream * 1e-4)
        assert (grad[24:] == 0).all()
        grad.fill_(torch.nan)


# --- slack, and values that no plan has -------------------------------------------------------------------------------
@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (16, 3), (7, 1)])
def test_slack_costs_nothing(patch, channels, backend, norm_pix_loss):
    images, pred, plan = case(patch, channels, torch.uint8)
    expected = loss_and_grad(hx.reconstruction_loss, images, pred, plan, *scaling(torch.uint8, "cpu"), norm_pix_loss)
    wide = torch.cat([pred, torch.full((41, pred.shape[1]), float("nan"))]).to(DEVICE)
    arguments = (images.to(DEVICE), wide, with_slack(plan, 41), *scaling(torch.uint8), norm_pix_loss)
    loss, patch_loss, grad = (t.cpu() for t in loss_and_grad(hx.reconstruction_loss, *arguments, backend=backend))
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(patch_loss[:24], expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad[:24], expected[2], rtol=1e-4, atol=1e-7)
    assert (patch_loss[24:] == 0).all()
    assert (grad[24:] == 0).all()


@pytest.mark.sanitize
@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (8, 3), (7, 1)])
def test_values_of_any_kind_stay_finite(patch, channels):
    for wild in (True, False):
        for _ in range(5):
            low, high = (-(2**31), 2**31 - 1) if wild else (-2, 20)
            ids = torch.randint(low, high, (13,)).to(torch.int32).to(DEVICE)
            cu = torch.randint(low, high, (4,)).to(torch.int32).to(DEVICE)
            plan = hx.MaskPlan(ids, cu, ids, cu, (3, 5), patch, 15, 15)
            images = torch.randn(3, channels, 3 * patch, 5 * patch, device=DEVICE)
            pred = torch.randn(13, channels * patch**2, device=DEVICE)
            assert all(t.isfinite().all() for t in loss_and_grad(hx.reconstruction_loss, images, pred, plan))


# --- streams, devices, waiting ----------------------------------------------------------------------------------------
def test_work_goes_to_the_current_stream():
    images, pred, plan = (v.to(DEVICE) for v in case(16, 1, torch.uint8))
    late = torch.zeros_like(pred)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(pred)
        got = loss_and_grad(hx.reconstruction_loss, images, late, plan, 1 / 64, -2.0)
    stream.synchronize()
    expected = loss_and_grad(hx.reconstruction_loss, images, pred, plan, 1 / 64, -2.0)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_nothing_waits():
    images, pred, plan = case(16, 1, torch.uint8)
    images, pred, slack = images.to(DEVICE), torch.cat([pred, pred[:7]]).to(DEVICE), with_slack(plan, 7)
    before = torch.cuda.get_sync_debug_mode()
    per_image = scaling(torch.uint8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for backend in ("auto", "reference"):
            for scale, shift in ((1 / 64, -2.0), per_image):
                loss_and_grad(hx.reconstruction_loss, images, pred, slack, scale, shift, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_runs_inside_a_cuda_graph():
    images, pred, plan = (v.to(DEVICE) for v in case(16, 1, torch.uint8))
    static = torch.zeros_like(pred)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # loads the kernels, in a stream of its own as captures want it
        loss_and_grad(hx.reconstruction_loss, images, static, plan, 1 / 64)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_and_grad(hx.reconstruction_loss, images, static, plan, 1 / 64)
    static.copy_(pred)
    graph.replay()
    expected = loss_and_grad(hx.reconstruction_loss, images, pred, plan, 1 / 64)
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_devices_other_than_the_current_one():
    images, pred, plan = case(16, 1, torch.uint8)
    first = loss_and_grad(hx.reconstruction_loss, *(v.to("cuda:0") for v in (images, pred, plan)), 1 / 64)
    for current in (0, 1):
        with torch.cuda.device(current):
            for device in ("cuda:0", "cuda:1"):
                got = loss_and_grad(hx.reconstruction_loss, *(v.to(device) for v in (images, pred, plan)), 1 / 64)
                for a, b in zip(got, first, strict=True):
                    torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-6, atol=1e-7)
                assert torch.cuda.current_device() == current


# --- registration -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pred_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_registration(pred_dtype):
    images, pred, plan = (v.to(DEVICE) for v in case(16, 1, torch.uint8, pred_dtype))
    pred.requires_grad_()
    packed, values = (plan.predict_ids, plan.predict_cu_seqlens), (1.0, 0.0, 16, True)
    arguments = (images, pred, *packed, *scaling(torch.uint8))
    for with_grad in (True, False):
        torch.library.opcheck(_loss_op, (*arguments, *values, with_grad), rtol=1e-3, atol=1e-5)
    detached, upstream = (images, pred.detach(), *arguments[2:]), torch.tensor(1.0, device=DEVICE)
    torch.library.opcheck(_loss_backward_op, (*detached, upstream, *values))
    grad = torch.randn(pred.shape, device=DEVICE).to(pred_dtype)
    torch.library.opcheck(_scale_op, (grad, plan.predict_cu_seqlens, upstream))


def test_compiles_into_one_graph_for_all_lengths():
    def step(x, y, p):
        return hx.reconstruction_loss(x, y * 2, p, 1 / 64, -2.0)[0] * 4

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    images = torch.randint(0, 256, (3, 1, 48, 80), dtype=torch.uint8, device=DEVICE)
    for predicted in ([4, 2, 11], [3, 9, 7], [1, 5, 2]):
        plan = ragged_plan((3, 5), [1, 1, 2], predicted, 16).to(DEVICE)
        pred = torch.randn(sum(predicted), 256, device=DEVICE, requires_grad=True)
        with torch.compiler.set_stance("fail_on_recompile" if predicted[0] == 1 else "default"):
            (grad,) = torch.autograd.grad(compiled(images, pred, plan), pred)
        (expected,) = torch.autograd.grad(step(images, pred, plan), pred)
        assert torch.equal(grad, expected)


# --- bad input --------------------------------------------------------------------------------------------------------
def test_what_lies_elsewhere_is_named():
    images, pred, plan = case(16, 1, torch.uint8)
    with pytest.raises(hx.ArgumentError, match=r"pred: got a tensor on cpu, accepted is cuda:0"):
        hx.reconstruction_loss(images.to(DEVICE), pred, plan.to(DEVICE))
    with pytest.raises(hx.ArgumentError, match=r"plan: its ids are on cuda:0, the images on cpu"):
        hx.reconstruction_loss(images, pred, plan.to(DEVICE))


def test_debug_checks_name_wrong_values():
    images, pred, plan = (v.to(DEVICE) for v in case(16, 1, torch.uint8))
    wrong = replace(plan, predict_ids=plan.predict_ids.clone())
    wrong.predict_ids[5] = 15
    with hx.debug_checks():
        hx.reconstruction_loss(images, pred, plan)
        with pytest.raises(hx.ArgumentError, match=r"plan\.predict_ids: entry 5 is 15"):
            hx.reconstruction_loss(images, pred, wrong)
    if native.resolve_backend("auto", images.device) == "native":
        assert hx.reconstruction_loss(images, pred, wrong)[1][5].item() == 0.0
