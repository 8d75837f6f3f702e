"""Gathered rows: bit for bit the reference in fp32, once rounded in half precision, and gradients back to images."""

from __future__ import annotations

import pytest
import torch
from pixel_helpers import FLOATS, PER_IMAGE, PIXELS, gather_case, pixels
from plan_helpers import make_plan, ragged_plan, with_slack

import hdxray_fast as hx
from hdxray_fast.ops import native
from hdxray_fast.ops.gather import _gather_op, _scatter_op, gather_patches_ref

pytestmark = pytest.mark.skipif(native.core is None, reason=f"the native core is not built: {native.why_missing}")


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", PIXELS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [1, 2, 7, 8, 14, 16, 32, 64])
def test_rows_equal_the_reference_bit_for_bit(vector_path, patch, channels, dtype, out_dtype):
    images, plan = gather_case(patch, channels, dtype)
    for which in ("keep", "predict"):
        rows = hx.gather_patches(images, plan, *PER_IMAGE, out_dtype=out_dtype, which=which, backend="native")
        assert rows.dtype == out_dtype
        assert torch.equal(rows, gather_patches_ref(images, plan, *PER_IMAGE, out_dtype, which))


def test_order_of_elements_is_that_of_patchify(vector_path):
    """MAE: einsum nchpwq -> nhwpqc, so (row in the patch, column in the patch, channel), patches row by row."""
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    patches = torch.einsum("nchpwq->nhwpqc", images.view(2, 3, 2, 2, 3, 2)).reshape(2, 6, 12)
    plan = make_plan([[0, 1, 2, 3, 4, 5], [1, 4]], [[], []], (2, 3), 2)
    assert torch.equal(hx.gather_patches(images, plan), torch.cat([patches[0], patches[1][[1, 4]]]))


@pytest.mark.parametrize("dtype", PIXELS, ids=str)
def test_strides_do_not_matter(vector_path, dtype):
    plan = ragged_plan((3, 5), [4, 7], [2, 3], 16)
    large = pixels((2, 5, 70, 101), dtype)
    views = {
        "a window": large[:, 1:4, 11:59, 13:93],
        "every second image row and channel": pixels((2, 5, 96, 80), dtype)[:, ::2, ::2],
        "channels and batch swapped": pixels((3, 2, 48, 80), dtype).transpose(0, 1),
        "one grey channel seen as three": pixels((2, 1, 48, 80), dtype).expand(2, 3, 48, 80),
        "one image seen as two": pixels((1, 3, 48, 80), dtype).expand(2, 3, 48, 80),
    }
    for name, view in views.items():
        rows = hx.gather_patches(view, plan, 0.01, -0.5)
        assert torch.equal(rows, gather_patches_ref(view.contiguous(), plan, 0.01, -0.5)), name


@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_value_is_read_and_written(vector_path, dtype, out_dtype):
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    images = bits.view(dtype).view(1, 1, 256, 256)
    plan = hx.plan_all(torch.ones(1, 16, 16, dtype=torch.bool))
    rows = hx.gather_patches(images, plan, out_dtype=out_dtype)
    expected = gather_patches_ref(images, plan, out_dtype=out_dtype)
    assert torch.equal(rows.isnan(), expected.isnan())
    assert torch.equal(rows.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("out_dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_to_half_precision_is_to_nearest_even(vector_path, out_dtype):
    """Halfway cases, overflow, subnormal results, and random bit patterns of every exponent."""
    special = torch.tensor([65504.0, 65519.9, 65520.0, 1e38, 3.39e38, 2**-24, 2**-25, 2**-25 * 1.0001, 6e-5, 6e-8, 0.0])
    halfway = (torch.arange(4096, dtype=torch.int32) * 0x1000 + 0x38800000).view(torch.float32)
    bf16_halfway = (torch.arange(4096, dtype=torch.int32) * 0x8000 + 0x3F800000).view(torch.float32)
    anything = torch.randint(0, 0x7F800000, (57309,), dtype=torch.int32).view(torch.float32)
    values = torch.cat([special, -special, halfway, bf16_halfway, anything])[: 256 * 256]
    images = torch.zeros(256 * 256)
    images[: len(values)] = values
    images = images.view(1, 1, 256, 256)
    plan = hx.plan_all(torch.ones(1, 16, 16, dtype=torch.bool))
    assert torch.equal(
        hx.gather_patches(images, plan, out_dtype=out_dtype), gather_patches_ref(images, plan, out_dtype=out_dtype)
    )


def test_scale_and_shift_are_two_roundings():
    """A fused multiply-add gives another last bit for these; PyTorch, and so this package, rounds twice."""
    images = torch.full((1, 1, 16, 16), 1 + 2**-12)
    plan = hx.plan_all(torch.ones(1, 1, 1, dtype=torch.bool))
    rows = hx.gather_patches(images, plan, 1 + 2**-12, -1.0)
    fused = (1 + 2**-12) ** 2 - 1
    assert rows[0, 0].item() == 2**-11
    assert rows[0, 0].item() != torch.tensor(fused).item()


def test_threads_and_backends_agree():
    images, plan = gather_case(16, 1, torch.uint8)
    images, plan = images.repeat(1, 1, 8, 8), ragged_plan((24, 40), [400, 0, 960], [1, 2, 0], 16)
    expected = hx.gather_patches(images, plan, 1 / 255, -0.5, backend="reference")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            assert torch.equal(hx.gather_patches(images, plan, 1 / 255, -0.5), expected)
    finally:
        torch.set_num_threads(before)


def test_empty_plans_and_batches_give_empty_rows():
    images = pixels((2, 1, 32, 32), torch.uint8)
    nothing = make_plan([[], []], [[], []], (2, 2))
    assert hx.gather_patches(images, nothing).shape == (0, 256)
    assert hx.gather_patches(images[:0], make_plan([], [], (2, 2))).shape == (0, 256)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("fill", [0, -1, 99])
@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (7, 3)])
def test_slack_gives_rows_of_zeros_and_no_gradient(vector_path, patch, channels, fill, backend):
    images, plan = gather_case(patch, channels, torch.float32)
    images.requires_grad_()
    slack = with_slack(plan, 70, 3, fill)
    for which, more in (("keep", 70), ("predict", 3)):
        exact = hx.gather_patches(images, plan, *PER_IMAGE, which=which, backend=backend)
        rows = hx.gather_patches(images, slack, *PER_IMAGE, which=which, backend=backend)
        assert torch.equal(rows[:-more], exact)
        assert not rows[-more:].any()
    rows = hx.gather_patches(images, slack, *PER_IMAGE, backend=backend)
    grad_rows = torch.randn(rows.shape)
    (grad,) = torch.autograd.grad(rows, images, grad_rows)
    exact = hx.gather_patches(images, plan, *PER_IMAGE, backend=backend)
    assert torch.equal(grad, torch.autograd.grad(exact, images, grad_rows[:-70])[0])


def test_a_plan_of_slack_alone_gives_zeros(vector_path):
    images, plan = pixels((2, 1, 32, 32), torch.uint8), with_slack(make_plan([[], []], [[], []], (2, 2)), 5)
    for backend in ("native", "reference"):
        assert torch.equal(hx.gather_patches(images, plan, 1.0, 3.0, backend=backend), torch.zeros(5, 256))


# --- gradients --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (14, 1), (8, 3), (16, 3)])
def test_gradient_equals_the_reference(vector_path, patch, channels, dtype, out_dtype):
    images, plan = gather_case(patch, channels, dtype)
    images.requires_grad_()
    rows = hx.gather_patches(images, plan, *PER_IMAGE, out_dtype=out_dtype)
    grad_rows = torch.randn(rows.shape).to(out_dtype)
    (grad,) = torch.autograd.grad(rows, images, grad_rows)
    reference = gather_patches_ref(images, plan, *PER_IMAGE, out_dtype)
    (expected,) = torch.autograd.grad(reference, images, grad_rows)
    assert torch.equal(grad, expected)
    assert (grad[1] == 0).all()  # nothing was kept of the middle image


def test_gradient_takes_strided_rows():
    images, plan = gather_case(16, 1, torch.float32)
    images.requires_grad_()
    rows = hx.gather_patches(images, plan)
    wide = torch.randn(rows.shape[0], 2 * rows.shape[1])
    (grad,) = torch.autograd.grad(rows, images, wide[:, ::2])
    (expected,) = torch.autograd.grad(gather_patches_ref(images, plan), images, wide[:, ::2].contiguous())
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_registration(dtype):
    images, plan = gather_case(16, 3, dtype)
    images.requires_grad_(dtype.is_floating_point)
    scale, shift = PER_IMAGE
    arguments = (images, plan.keep_ids, plan.keep_cu_seqlens, scale, shift, 1.0, 0.0, 16, torch.float32, "keep")
    torch.library.opcheck(_gather_op, arguments)
    numbers = (images, plan.keep_ids, plan.keep_cu_seqlens, None, None, 0.5, 1.0, 16, torch.bfloat16, "keep")
    torch.library.opcheck(_gather_op, numbers)
    rows = torch.randn(plan.keep_ids.numel(), 768)
    shape = list(images.shape)
    torch.library.opcheck(
        _scatter_op, (rows, plan.keep_ids, plan.keep_cu_seqlens, scale, 1.0, shape, 16, torch.float32)
    )


def test_a_layout_that_a_compiler_changed_is_read_right():
    """The operator by itself, on images whose pixels of a row do not lie side by side."""
    images, plan = gather_case(16, 3, torch.float32)
    rows = hx.gather_patches(images, plan)
    packed = (plan.keep_ids, plan.keep_cu_seqlens)
    for layout in (torch.channels_last, torch.contiguous_format):
        arranged = images.contiguous(memory_format=layout)
        assert torch.equal(_gather_op(arranged, *packed, None, None, 1.0, 0.0, 16, torch.float32, "keep"), rows)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_into_one_graph(dynamic):
    images, plan = gather_case(16, 1, torch.float32)
    images.requires_grad_()

    def step(x, p):
        return hx.gather_patches(x, p, 0.5, 1.0).square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert torch.equal(compiled(images, plan), step(images, plan))
    (grad,) = torch.autograd.grad(compiled(images, plan), images)
    (expected,) = torch.autograd.grad(step(images, plan), images)
    assert torch.equal(grad, expected)


# --- bad input --------------------------------------------------------------------------------------------------------
def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def plan_with(**changes) -> hx.MaskPlan:
    fields = {
        "keep_ids": int32(0, 3, 2),
        "keep_cu_seqlens": int32(0, 2, 3),
        "predict_ids": int32(1),
        "predict_cu_seqlens": int32(0, 1, 1),
    }
    sizes = {"grid_size": (2, 2), "patch_size": 16, "max_keep": 2, "max_predict": 1}
    return hx.MaskPlan(**{**fields, **sizes, **changes})


IMAGES = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"images": IMAGES.numpy()}, hx.ArgumentTypeError, "images: got ndarray"),
        ({"images": IMAGES.long()}, hx.ArgumentError, "images: got dtype int64"),
        ({"images": IMAGES.double()}, hx.ArgumentError, "images: got dtype float64"),
        ({"images": IMAGES[0]}, hx.ArgumentError, "images: got shape"),
        ({"images": IMAGES.expand(2, 2, 32, 32)}, hx.ArgumentError, "images: got 2 channels"),
        ({"images": IMAGES[:1]}, hx.ArgumentError, "images: got a batch of 1"),
        ({"images": IMAGES[..., :16]}, hx.ArgumentError, "images: got 32 x 16 pixels"),
        ({"images": IMAGES.to("meta")}, hx.ArgumentError, "plan: its ids are on cpu"),
        ({"plan": {"keep_ids": 1}}, hx.ArgumentTypeError, "plan: got dict"),
        ({"plan": plan_with(keep_ids=int32(0, 4, 2))}, hx.ArgumentError, "plan.keep_ids: entry 1 is 4"),
        ({"plan": plan_with(keep_ids=int32(-1, 3, 2))}, hx.ArgumentError, "plan.keep_ids: entry 0 is -1"),
        ({"plan": plan_with(keep_ids=int32(3, 0, 2))}, hx.ArgumentError, "plan.keep_ids: must be strictly ascending"),
        ({"plan": plan_with(keep_ids=int32(3, 3, 2))}, hx.ArgumentError, "plan.keep_ids: must be strictly ascending"),
        ({"plan": plan_with(keep_cu_seqlens=int32(0, 4, 3))}, hx.ArgumentError, "plan.keep_cu_seqlens: must not fall"),
        ({"plan": plan_with(keep_cu_seqlens=int32(1, 2, 3))}, hx.ArgumentError, "plan.keep_cu_seqlens: must start"),
        ({"plan": plan_with(keep_cu_seqlens=int32(0, 2, 4))}, hx.ArgumentError, "plan.keep_cu_seqlens: must end at"),
        ({"plan": plan_with(keep_cu_seqlens=int32(0, -5, 3))}, hx.ArgumentError, "plan.keep_cu_seqlens: must not fall"),
        ({"scale": float("nan")}, hx.ArgumentError, "scale: got nan"),
        ({"shift": float("inf")}, hx.ArgumentError, "shift: got inf"),
        ({"scale": "1"}, hx.ArgumentTypeError, "scale: got str"),
        ({"scale": torch.ones(3)}, hx.ArgumentError, "scale: got shape"),
        ({"scale": torch.ones(2, dtype=torch.float64)}, hx.ArgumentError, "scale: got dtype float64"),
        ({"shift": torch.ones(2, requires_grad=True)}, hx.ArgumentError, "shift: requires_grad"),
        ({"out_dtype": torch.float64}, hx.ArgumentError, "out_dtype: got"),
        ({"which": "drop"}, hx.ArgumentError, "which: got 'drop'"),
        ({"backend": "triton"}, hx.ArgumentError, "backend: got 'triton'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, says, backend):
    with pytest.raises(error, match=says) as raised:
        hx.gather_patches(**{"images": IMAGES, "plan": plan_with(), "backend": backend, **arguments})
    assert isinstance(raised.value, hx.HDXrayError)


def test_bad_ids_are_refused_in_the_backward_pass_too():
    with pytest.raises(hx.ArgumentError, match=r"plan\.keep_ids: entry 0 is 9"):
        _scatter_op(torch.zeros(1, 256), int32(9), int32(0, 1), None, 1.0, [1, 1, 32, 32], 16, torch.float32)
