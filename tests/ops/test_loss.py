"""Reconstruction loss: the reference's values and gradients, the same on any number of threads."""

from __future__ import annotations

import pytest
import torch
from pixel_helpers import FLOATS, PIXELS
from plan_helpers import make_plan, ragged_plan
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


# --- gradients --------------------------------------------------------------------------------------------------------
def test_gradient_follows_what_comes_after(vector_path):
    images, pred, plan = case(14, 3, torch.uint8)
    (plain,) = torch.autograd.grad(hx.reconstruction_loss(images, pred, plan, 1 / 64)[0], pred)
    (scaled,) = torch.autograd.grad(hx.reconstruction_loss(images, pred, plan, 1 / 64)[0] * -2048.0, pred)
    assert torch.equal(scaled, plain * -2048.0)


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
    values = (1.0, 0.0, 16)
    torch.library.opcheck(_loss_op, (*arguments, *values, True), rtol=1e-3, atol=1e-5)
    _, _, mean, rstd = _loss_op(*arguments, *values, True)
    detached = (images, pred.detach(), *arguments[2:])
    torch.library.opcheck(_loss_backward_op, (*detached, mean.detach(), rstd.detach(), torch.tensor(1.0), *values))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_into_one_graph(dynamic):
    images, pred, plan = case(16, 1, torch.uint8)

    def step(x, y, p):
        return hx.reconstruction_loss(x, y * 2, p, 1 / 64, -2.0)[0] * 3

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(images, pred, plan), pred)
    (expected,) = torch.autograd.grad(step(images, pred, plan), pred)
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
