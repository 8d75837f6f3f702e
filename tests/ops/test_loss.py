"""Reconstruction loss: the reference's values and gradients, the same on any number of threads."""

from __future__ import annotations

import gc
import weakref
from unittest import mock

import pytest
import torch
from pixel_helpers import FLOATS, PIXELS
from plan_helpers import make_plan, ragged_plan, with_slack
from recorded_graph import Recorder
from tolerances import assert_two_times_rule

import hdxray_fast as hx
from hdxray_fast.ops import native
from hdxray_fast.ops.loss import _loss_backward_op, _loss_op, reconstruction_loss_ref

pytestmark = pytest.mark.skipif(native.core is None, reason=f"the native core is not built: {native.why_missing}")


def case(patch: int, channels: int, dtype: torch.dtype, pred_dtype: torch.dtype = torch.float32):
    """Images, predictions and a plan on a 3 x 5 grid; the middle image predicts nothing."""
    plan = ragged_plan((3, 5), [4, 3, 1], [11, 0, 13], patch)
    shape = (3, channels, 3 * patch, 5 * patch)
    if dtype.is_floating_point:
        images = torch.randn(shape).to(dtype)
    else:
        images = torch.randint(0, 256 if dtype == torch.uint8 else 65536, shape, dtype=torch.int32).to(dtype)
    pred = torch.randn(24, channels * patch**2).to(pred_dtype).requires_grad_()
    return images, pred, plan


def scaling(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale and shift per image, so that targets are of order one."""
    unit = {torch.uint8: 1 / 64, torch.uint16: 1 / 16384}.get(dtype, 1.0)
    return torch.tensor([unit, 0.5 * unit, 1.5 * unit]), torch.tensor([-2.0, 0.0, 0.25])


def loss_and_grad(function, images, pred, plan, *arguments, **options):
    loss, patch_loss = function(images, pred, plan, *arguments, **options)
    return loss, patch_loss, torch.autograd.grad(loss, pred)[0]


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("pred_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", PIXELS, ids=str)
@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (2, 1), (7, 1), (14, 1), (16, 3), (8, 3), (32, 1), (64, 1)])
def test_loss_and_gradient_keep_the_two_times_rule(vector_path, patch, channels, dtype, pred_dtype, norm_pix_loss):
    images, pred, plan = case(patch, channels, dtype, pred_dtype)
    arguments = (*scaling(dtype), norm_pix_loss)
    ours = loss_and_grad(hx.reconstruction_loss, images, pred, plan, *arguments, backend="native")
    same = loss_and_grad(reconstruction_loss_ref, images, pred, plan, *arguments)
    exact_pred = pred.detach().double().requires_grad_()
    exact = loss_and_grad(reconstruction_loss_ref, images.double(), exact_pred, plan, *arguments)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    assert ours[2].dtype == pred_dtype
    for out, pytorch, truth in zip(ours, same, exact, strict=True):
        scale = truth.abs().max().item()
        assert_two_times_rule(out / scale, pytorch / scale, truth / scale, tiny=2e-6)


def test_loss_is_the_mean_over_predicted_patches_of_the_batch(vector_path):
    images, pred, plan = case(16, 1, torch.uint8)
    loss, patch_loss = hx.reconstruction_loss(images, pred, plan, 1 / 64, -2.0)
    assert patch_loss.shape == (24,)
    assert not patch_loss.requires_grad
    assert loss.item() == pytest.approx(patch_loss.double().mean().item(), rel=1e-7)


def test_perfect_predictions_cost_nothing(vector_path):
    images, _, plan = case(16, 1, torch.uint8)
    target = hx.gather_patches(images, plan, 1 / 64, -2.0, which="predict")
    loss, _ = hx.reconstruction_loss(images, target, plan, 1 / 64, -2.0, norm_pix_loss=False)
    assert loss.item() == 0.0
    normalised = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    assert hx.reconstruction_loss(images, normalised, plan, 1 / 64, -2.0)[0].item() < 1e-12


def test_flat_patches_are_finite(vector_path):
    images = torch.full((1, 1, 32, 32), 65535, dtype=torch.int32).to(torch.uint16)
    plan = make_plan([[0]], [[1, 2, 3]], (2, 2))
    pred = torch.ones(3, 256, requires_grad=True)
    loss, _, grad = loss_and_grad(hx.reconstruction_loss, images, pred, plan, 1 / 255.0, -100.0)
    assert loss.item() == pytest.approx(1.0)  # the target is zero everywhere
    assert torch.isfinite(grad).all()


def test_vector_paths_and_threads_give_the_same_bits():
    images, _, _ = case(16, 1, torch.uint8)
    images, plan = images.repeat(1, 1, 8, 8), ragged_plan((24, 40), [1, 2, 3], [900, 0, 700], 16)
    pred = torch.randn(1600, 256, requires_grad=True)
    before = torch.get_num_threads(), native.core.vector_path()
    seen = []
    try:
        for path in native.core.vector_paths():
            native.core.set_vector_path(path)
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                seen.append(loss_and_grad(hx.reconstruction_loss, images, pred, plan, 1 / 64, -2.0))
    finally:
        torch.set_num_threads(before[0])
        native.core.set_vector_path(before[1])
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_nothing_predicted_is_a_loss_of_zero_with_zero_gradient(backend):
    images = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    plan = make_plan([[0], []], [[], []], (2, 2))
    weight = torch.ones(256, requires_grad=True)
    pred = torch.zeros(0, 256) * weight
    loss, patch_loss = hx.reconstruction_loss(images, pred, plan, backend=backend)
    assert loss.item() == 0.0
    assert patch_loss.shape == (0,)
    loss.backward()
    assert torch.equal(weight.grad, torch.zeros(256))
    pred = torch.ones(3, 256, requires_grad=True)
    loss, patch_loss = hx.reconstruction_loss(images, pred, with_slack(plan, 0, 3), backend=backend)
    loss.backward()
    assert not any(t.any() for t in (loss, patch_loss, pred.grad))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (7, 3)])
def test_slack_costs_nothing(vector_path, patch, channels, norm_pix_loss, backend):
    """The mean is over the real rows; slack has no loss and no gradient, whatever its ids and predictions are."""
    images, pred, plan = case(patch, channels, torch.uint8)
    slack, wide = (
        with_slack(plan, 0, 70, fill=99),
        torch.cat([pred.detach(), torch.full((70, pred.shape[1]), torch.nan)]),
    )
    arguments = (*scaling(torch.uint8), norm_pix_loss)
    exact = loss_and_grad(hx.reconstruction_loss, images, pred, plan, *arguments, backend=backend)
    got = loss_and_grad(hx.reconstruction_loss, images, wide.requires_grad_(), slack, *arguments, backend=backend)
    assert got[0].item() == pytest.approx(exact[0].item(), rel=1e-6)
    for ours, expected in zip(got[1:], exact[1:], strict=True):
        assert torch.equal(ours[:24], expected)
        assert not ours[24:].any()


# --- gradients --------------------------------------------------------------------------------------------------------
def test_gradient_follows_what_comes_after(vector_path):
    images, pred, plan = case(14, 3, torch.uint8)
    (plain,) = torch.autograd.grad(hx.reconstruction_loss(images, pred, plan, 1 / 64)[0], pred)
    (scaled,) = torch.autograd.grad(hx.reconstruction_loss(images, pred, plan, 1 / 64)[0] * -2048.0, pred)
    assert torch.equal(scaled, plain * -2048.0)


@pytest.mark.parametrize("pred_dtype", FLOATS, ids=str)
def test_another_upstream_gradient_is_one_rounding_more_at_most(vector_path, pred_dtype):
    """The gradient is rounded for an upstream of 1 first; in half precision, whose range is narrow, it is not."""
    images, pred, plan = case(16, 1, torch.uint8, pred_dtype)
    operands = (images, pred.detach(), plan.predict_ids, plan.predict_cu_seqlens, *scaling(torch.uint8))
    last_bit = {torch.float32: 2**-22, torch.float16: 0.0, torch.bfloat16: 2**-7}[pred_dtype]
    for upstream in (1.0, 65536.0, 1 / 3, -7.0, 0.0):
        loss, _ = hx.reconstruction_loss(images, pred, plan, *scaling(torch.uint8))
        (got,) = torch.autograd.grad(loss, pred, torch.tensor(upstream))
        at_once = _loss_backward_op(*operands, torch.tensor(upstream), 1.0, 0.0, 16, True)
        assert got.dtype == pred_dtype
        if upstream in (1.0, 65536.0, 0.0):
            assert torch.equal(got, at_once)
        assert ((got.double() - at_once.double()).abs() <= last_bit * at_once.double().abs()).all()


def test_half_precision_gradients_are_scaled_before_they_are_rounded():
    """Of a large batch they are below 6e-8, the least half precision number; a loss scaler is there to lift them."""
    images, pred, plan = case(16, 1, torch.uint8, torch.float16)
    shrink = torch.tensor(2.0**-16)  # as 65536 times as many rows would
    (grad,) = torch.autograd.grad(hx.reconstruction_loss(images, pred, plan, 1 / 64)[0], pred, shrink)
    assert (grad == 0).float().mean() > 0.9
    (lifted,) = torch.autograd.grad(hx.reconstruction_loss(images, pred, plan, 1 / 64)[0], pred, shrink * 2.0**16)
    wide = pred.detach().float().requires_grad_()
    (exact,) = torch.autograd.grad(hx.reconstruction_loss(images, wide, plan, 1 / 64)[0], wide)
    torch.testing.assert_close(lifted.float(), exact, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("upstream", [1.0, 3.0])
@pytest.mark.parametrize("pred_dtype", FLOATS, ids=str)
def test_a_second_backward_pass_gives_the_same(pred_dtype, upstream):
    """Whatever was done to the gradient that the first one gave."""
    images, pred, plan = case(16, 1, torch.uint8, pred_dtype)
    loss, _ = hx.reconstruction_loss(images, pred, plan, 1 / 64, -2.0)
    grads = []
    for _ in range(3):
        (grad,) = torch.autograd.grad(loss, pred, torch.tensor(upstream), retain_graph=True)
        grads.append(grad.clone())
        grad.fill_(torch.nan)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=0 if upstream == 1.0 else 2**-7, atol=0)
    loss.backward()
    torch.testing.assert_close(pred.grad, grads[0] / upstream, rtol=0 if upstream == 1.0 else 2**-6, atol=0)


def test_gradients_of_a_batch_are_those_one_by_one():
    """With ``is_grads_batched`` a tensor stands for several, and none of them may be written to."""
    images, pred, plan = case(16, 1, torch.uint8)
    loss, _ = hx.reconstruction_loss(images, pred, plan)
    upstream = torch.tensor([1.0, -2.5])
    (several,) = torch.autograd.grad(loss, pred, upstream, is_grads_batched=True, retain_graph=True)
    for value, grad in zip(upstream, several, strict=True):
        torch.testing.assert_close(torch.autograd.grad(loss, pred, value, retain_graph=True)[0], grad)


def test_a_gradient_that_is_not_asked_for_is_not_made(monkeypatch):
    images, pred, plan = case(16, 1, torch.uint8)
    seen = []
    forward = native.loss
    monkeypatch.setattr(native, "loss", lambda *a: seen.append(forward(*a)) or seen[-1])
    hx.reconstruction_loss(images, pred.detach(), plan, 1 / 64)
    with torch.no_grad():
        hx.reconstruction_loss(images, pred, plan, 1 / 64)
    half = pred.detach().half().requires_grad_()
    hx.reconstruction_loss(images, half, plan, 1 / 64)
    assert [out[2].shape[0] for out in seen] == [0, 0, 0]
    hx.reconstruction_loss(images, pred, plan, 1 / 64)
    assert seen[-1][2].shape == pred.shape


def test_the_backward_pass_makes_nothing():
    """Its gradient is there; zeros for the outputs without gradient would be as large, and written on each pass."""
    images, pred, plan = case(16, 1, torch.uint8)
    loss, _ = hx.reconstruction_loss(images, pred, plan, 1 / 64)
    recorder = Recorder()
    with recorder:
        torch.autograd.grad(loss, pred)
    assert not [tensor.shape for tensor in recorder.made.values() if tensor.numel() > 1]


def test_the_gradient_is_gone_with_its_graph():
    """Nothing owns itself: it is freed when the loss is, without the garbage collector."""
    images, pred, plan = case(16, 1, torch.uint8)
    kept = []
    gc.disable()
    try:
        with mock.patch.object(native, "loss", side_effect=native.loss) as forward:
            loss, _ = hx.reconstruction_loss(images, pred, plan, 1 / 64)
            kept = weakref.ref(loss.grad_fn.unit_grad.untyped_storage())
            assert forward.call_count == 1
        del loss
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("pred_dtype", FLOATS, ids=str)
def test_a_second_derivative_is_refused_by_name(pred_dtype):
    images, pred, plan = case(16, 1, torch.uint8, pred_dtype)
    loss, _ = hx.reconstruction_loss(images, pred, plan, 1 / 64)
    (plain,) = torch.autograd.grad(loss, pred, retain_graph=True)
    (grad,) = torch.autograd.grad(loss, pred, create_graph=True)
    assert torch.equal(grad, plain)
    with pytest.raises((NotImplementedError, RuntimeError), match="reconstruction_loss_backward"):
        torch.autograd.grad(grad.float().square().sum(), pred)


def test_strided_predictions_and_images():
    images, pred, plan = case(16, 1, torch.uint8)
    window = torch.zeros(3, 2, 60, 100, dtype=torch.uint8)
    window[:, 1:, 5:53, 7:87] = images
    wide = torch.cat([pred.detach(), pred.detach()], dim=1)
    expected = hx.reconstruction_loss(images, pred, plan, 1 / 64)
    got = hx.reconstruction_loss(window[:, 1:, 5:53, 7:87], wide[:, :256], plan, 1 / 64)
    assert torch.equal(got[0], expected[0])


@pytest.mark.parametrize("pred_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_registration(pred_dtype):
    images, pred, plan = case(16, 1, torch.uint8, pred_dtype)
    scale, shift = scaling(torch.uint8)
    arguments = (images, pred, plan.predict_ids, plan.predict_cu_seqlens, scale, shift)
    values = (1.0, 0.0, 16, True)
    for with_grad in (True, False):
        torch.library.opcheck(_loss_op, (*arguments, *values, with_grad), rtol=1e-3, atol=1e-5)
    detached = (images, pred.detach(), *arguments[2:])
    torch.library.opcheck(_loss_backward_op, (*detached, torch.tensor(1.0), *values))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_into_one_graph(dynamic):
    images, pred, plan = case(16, 1, torch.uint8)

    def step(x, y, p):
        return hx.reconstruction_loss(x, y * 2, p, 1 / 64, -2.0)[0] * 4

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    (expected,) = torch.autograd.grad(step(images, pred, plan), pred)
    (grad,) = torch.autograd.grad(compiled(images, pred, plan), pred)
    assert torch.equal(grad, expected)


# --- bad input --------------------------------------------------------------------------------------------------------
IMAGES = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
PLAN = make_plan([[0], [1]], [[1, 2], [0]], (2, 2))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"pred": torch.zeros(2, 256)}, hx.ArgumentError, "pred: got shape"),
        ({"pred": torch.zeros(3, 255)}, hx.ArgumentError, "pred: got shape"),
        ({"pred": torch.zeros(3, 16, 16)}, hx.ArgumentError, "pred: got shape"),
        ({"pred": torch.zeros(3, 256, dtype=torch.float64)}, hx.ArgumentError, "pred: got dtype float64"),
        ({"pred": torch.zeros(3, 256, dtype=torch.uint8)}, hx.ArgumentError, "pred: got dtype uint8"),
        ({"pred": torch.zeros(3, 256, device="meta")}, hx.ArgumentError, "pred: got a tensor on meta"),
        ({"pred": None}, hx.ArgumentTypeError, "pred: got NoneType"),
        ({"images": IMAGES[:1]}, hx.ArgumentError, "images: got a batch of 1"),
        ({"plan": None}, hx.ArgumentTypeError, "plan: got NoneType"),
        ({"plan": make_plan([[0], [1]], [[1, 4], [0]], (2, 2))}, hx.ArgumentError, "plan.predict_ids: entry 1 is 4"),
        (
            {"plan": make_plan([[0], [1]], [[2, 1], [0]], (2, 2))},
            hx.ArgumentError,
            "plan.predict_ids: must be",
        ),
        ({"scale": float("nan")}, hx.ArgumentError, "scale: got nan"),
        ({"norm_pix_loss": 1}, hx.ArgumentTypeError, "norm_pix_loss: got int"),
        ({"backend": "fast"}, hx.ArgumentError, "backend: got 'fast'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, says, backend):
    good = {"images": IMAGES, "pred": torch.zeros(3, 256), "plan": PLAN, "backend": backend}
    with pytest.raises(error, match=says) as raised:
        hx.reconstruction_loss(**{**good, **arguments})
    assert isinstance(raised.value, hx.HDXrayError)


def test_a_patch_of_one_pixel_has_no_variance():
    plan = make_plan([[0]], [[1]], (1, 2), 1)
    with pytest.raises(hx.ArgumentError, match="norm_pix_loss"):
        hx.reconstruction_loss(IMAGES[:1, :, :1, :2], torch.zeros(1, 1), plan)
    assert hx.reconstruction_loss(IMAGES[:1, :, :1, :2], torch.zeros(1, 1), plan, norm_pix_loss=False)[0].item() == 0.0
