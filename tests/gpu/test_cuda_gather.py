"""Gather on a GPU: bit for bit the CPU path, in any stream, without waiting, and never outside the buffers."""

from __future__ import annotations

from dataclasses import replace

import plan_helpers
import pytest
import torch
from pixel_helpers import FLOATS, PER_IMAGE, PIXELS, gather_case, pixels
from plan_helpers import make_plan, ragged_plan

import hdxray_fast as hx
from hdxray_fast.ops import native
from hdxray_fast.ops.gather import _gather_op, _scatter_op, gather_patches_ref

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
DEVICE = "cuda"


def with_slack(plan: hx.MaskPlan, keep: int, predict: int = 0) -> hx.MaskPlan:
    """The plan on the GPU, with room for more rows than are real, as plans made there with bounds have it."""
    return plan_helpers.with_slack(plan, keep, predict).to(DEVICE)


def on_gpu(*values: object) -> list:
    return [v.to(DEVICE) for v in values]


@pytest.fixture(autouse=True)
def _errors_show_in_the_test_that_makes_them():
    yield
    torch.cuda.synchronize()


def test_the_core_is_used_where_it_is_built_for_this_gpu():
    if native.core is None or not native.core.build_info()["cuda"].startswith("on"):
        pytest.skip("this build of the core has no CUDA paths")
    assert native.why_not_native("cuda", 0) == ""
    assert native.resolve_backend("auto", torch.device("cuda", 0)) == "native"


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [1, 2, 4, 7, 8, 12, 14, 16, 32, 64])
def test_rows_equal_the_cpu_path_bit_for_bit(patch, channels):
    for dtype in PIXELS:
        images, plan = gather_case(patch, channels, dtype)
        there, plan_there, *scaling = on_gpu(images, plan, *PER_IMAGE)
        for out_dtype in FLOATS:
            for which in ("keep", "predict"):
                rows = hx.gather_patches(there, plan_there, *scaling, out_dtype=out_dtype, which=which)
                expected = hx.gather_patches(images, plan, *PER_IMAGE, out_dtype=out_dtype, which=which)
                assert rows.dtype == out_dtype
                assert torch.equal(rows.cpu(), expected), (dtype, out_dtype, which)


@pytest.mark.parametrize("dtype", PIXELS, ids=str)
def test_strides_and_alignment_do_not_matter(dtype):
    plan = ragged_plan((3, 5), [4, 7], [2, 3], 16)
    large = pixels((2, 5, 70, 101), dtype).to(DEVICE)
    views = {
        "every second image row and channel": pixels((2, 5, 96, 80), dtype).to(DEVICE)[:, ::2, ::2],
        "channels and batch swapped": pixels((3, 2, 48, 80), dtype).to(DEVICE).transpose(0, 1),
        "one grey channel seen as three": pixels((2, 1, 48, 80), dtype).to(DEVICE).expand(2, 3, 48, 80),
        "one image seen as two": pixels((1, 3, 48, 80), dtype).to(DEVICE).expand(2, 3, 48, 80),
        "one channel of many": pixels((2, 3, 48, 80), dtype).to(DEVICE)[:, 1:2],
        **{f"a window at column {x}": large[:, 1:4, 11:59, x : x + 80] for x in range(9)},
        **{f"a grey window at column {x}": large[:, 2:3, 9:57, x : x + 80] for x in range(9)},
    }
    for name, view in views.items():
        for out_dtype in FLOATS:
            rows = hx.gather_patches(view, plan.to(DEVICE), 0.01, -0.5, out_dtype=out_dtype)
            expected = hx.gather_patches(view.cpu().contiguous(), plan, 0.01, -0.5, out_dtype=out_dtype)
            assert torch.equal(rows.cpu(), expected), (name, out_dtype)


@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_value_is_read_and_written(dtype, out_dtype):
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    images = bits.view(dtype).view(1, 1, 256, 256)
    plan = hx.plan_all(torch.ones(1, 16, 16, dtype=torch.bool))
    rows = hx.gather_patches(*on_gpu(images, plan), out_dtype=out_dtype).cpu()
    expected = hx.gather_patches(images, plan, out_dtype=out_dtype)
    assert torch.equal(rows.isnan(), expected.isnan())
    assert torch.equal(rows.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("out_dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_to_half_precision_is_to_nearest_even(out_dtype):
    special = torch.tensor([65504.0, 65519.9, 65520.0, 1e38, 3.39e38, 2**-24, 2**-25, 2**-25 * 1.0001, 6e-5, 6e-8, 0.0])
    anything = torch.randint(0, 0x7F800000, (65514,), dtype=torch.int32).view(torch.float32)
    images = torch.cat([special, -special, anything]).view(1, 1, 256, 256)
    plan = hx.plan_all(torch.ones(1, 16, 16, dtype=torch.bool))
    rows = hx.gather_patches(*on_gpu(images, plan), out_dtype=out_dtype)
    assert torch.equal(rows.cpu(), hx.gather_patches(images, plan, out_dtype=out_dtype))


def test_scale_and_shift_are_two_roundings():
    """A fused multiply-add gives another last bit for these."""
    images = torch.full((1, 1, 16, 16), 1 + 2**-12, device=DEVICE)
    plan = hx.plan_all(torch.ones(1, 1, 1, dtype=torch.bool)).to(DEVICE)
    for patch_dtype in (torch.float32, torch.bfloat16):
        rows = hx.gather_patches(images, plan, 1 + 2**-12, -1.0, out_dtype=patch_dtype)
        assert rows[0, 0].item() == 2**-11


def test_numbers_and_tensors_scale_alike():
    images, plan = on_gpu(*gather_case(16, 1, torch.uint8))
    expected = hx.gather_patches(images, plan, 1 / 255, -0.5)
    one = torch.tensor(1 / 255, device=DEVICE)
    assert torch.equal(hx.gather_patches(images, plan, one, -0.5), expected)
    assert torch.equal(hx.gather_patches(images, plan, one.expand(3), torch.full((3,), -0.5, device=DEVICE)), expected)


def test_empty_plans_and_batches_give_empty_rows():
    images, nothing = on_gpu(pixels((2, 1, 32, 32), torch.uint8), make_plan([[], []], [[], []], (2, 2)))
    assert hx.gather_patches(images, nothing).shape == (0, 256)
    assert hx.gather_patches(images[:0], make_plan([], [], (2, 2)).to(DEVICE)).shape == (0, 256)


@pytest.mark.parametrize("batch", [33, 1100])
def test_many_images(batch):
    plan = ragged_plan((2, 2), [(i * 7) % 5 % 4 for i in range(batch)], [0] * batch, 16)
    images = pixels((batch, 1, 32, 32), torch.uint8)
    rows = hx.gather_patches(*on_gpu(images, plan), out_dtype=torch.bfloat16)
    assert torch.equal(rows.cpu(), hx.gather_patches(images, plan, out_dtype=torch.bfloat16))


def test_full_size_images():
    plan = ragged_plan((80, 80), [641, 6400, 0, 900], [0] * 4, 16)
    images = pixels((4, 1, 1280, 1280), torch.uint8)
    rows = hx.gather_patches(*on_gpu(images, plan), 1 / 127.5, -1.0, out_dtype=torch.bfloat16)
    assert torch.equal(rows.cpu(), hx.gather_patches(images, plan, 1 / 127.5, -1.0, out_dtype=torch.bfloat16))


# --- slack, and values that no plan has -------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (16, 3), (7, 1)])
def test_slack_rows_are_zero(patch, channels, backend):
    images, plan = gather_case(patch, channels, torch.float32)
    expected = hx.gather_patches(images, plan, *PER_IMAGE)
    slack, (there, *scaling) = with_slack(plan, 37), on_gpu(images, *PER_IMAGE)
    rows = hx.gather_patches(there, slack, *scaling, backend=backend).cpu()
    assert rows.shape[0] == 19 + 37
    assert torch.equal(rows[:19], expected)
    assert (rows[19:] == 0).all()


def test_slack_gives_no_gradient():
    images, plan = gather_case(16, 1, torch.float32)
    leaf = images.requires_grad_()
    grad_rows = torch.randn(19 + 37, 256)
    (expected,) = torch.autograd.grad(hx.gather_patches(leaf, plan), leaf, grad_rows[:19])
    there = images.detach().to(DEVICE).requires_grad_()
    for backend in ("auto", "reference"):
        rows = hx.gather_patches(there, with_slack(plan, 37), backend=backend)
        (grad,) = torch.autograd.grad(rows, there, grad_rows.to(DEVICE))
        assert torch.equal(grad.cpu(), expected)


@pytest.mark.sanitize
@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (8, 3), (7, 1)])
def test_values_of_any_kind_do_what_the_emulation_does(patch, channels):
    if native.core is None or native.why_not_native("cuda", 0):
        pytest.skip("needs the core with CUDA paths")
    images = pixels((3, channels, 3 * patch, 5 * patch), torch.float32)
    for wild in (True, False):
        for _ in range(5):
            low, high = (-(2**31), 2**31 - 1) if wild else (-2, 20)
            ids = torch.randint(low, high, (13,)).to(torch.int32)
            cu = torch.randint(low, high, (4,)).to(torch.int32)
            ids_there, cu_there = on_gpu(ids, cu)
            plan = hx.MaskPlan(ids_there, cu_there, ids_there, cu_there, (3, 5), patch, 15, 15)
            rows = hx.gather_patches(images.to(DEVICE), plan, 0.5, 1.0, backend="native").cpu()
            expected = torch.full_like(rows, float("nan"))
            scaling = (None, None, 0.5, 1.0)
            native.core._emulate_gather(
                native._images(images, patch), native._rows(ids, cu, scaling), expected.data_ptr(), 4
            )
            assert torch.equal(rows, expected)


# --- gradients --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (14, 1), (8, 3), (32, 1)])
def test_gradient_equals_the_cpu_path_bit_for_bit(patch, channels, dtype, out_dtype):
    images, plan = gather_case(patch, channels, dtype)
    grads = []
    grad_rows = torch.randn(19, channels * patch**2).to(out_dtype)
    for device in ("cpu", DEVICE):
        leaf = images.detach().to(device).requires_grad_()
        scaling = [t.to(device) for t in PER_IMAGE]
        rows = hx.gather_patches(leaf, plan.to(device), *scaling, out_dtype=out_dtype)
        grads.append(torch.autograd.grad(rows, leaf, grad_rows.to(device))[0].cpu())
    assert torch.equal(*grads)
    assert (grads[1][1] == 0).all()  # nothing was kept of the middle image


def test_gradient_takes_strided_rows():
    images, plan = on_gpu(*gather_case(16, 1, torch.float32))
    images.requires_grad_()
    wide = torch.randn(19, 512, device=DEVICE)
    (grad,) = torch.autograd.grad(hx.gather_patches(images, plan), images, wide[:, ::2])
    (expected,) = torch.autograd.grad(gather_patches_ref(images, plan), images, wide[:, ::2].contiguous())
    assert torch.equal(grad, expected)


# --- streams, devices, waiting ----------------------------------------------------------------------------------------
def test_work_goes_to_the_current_stream():
    """Images are written late in a side stream: only work in that stream sees them."""
    images, plan = on_gpu(*gather_case(16, 1, torch.uint8))
    late = torch.zeros_like(images)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(images)
        rows = hx.gather_patches(late, plan)
    stream.synchronize()
    assert torch.equal(rows, hx.gather_patches(images, plan))


def test_nothing_waits():
    images, plan = gather_case(16, 1, torch.float32)
    slack, (there, *scaling) = with_slack(plan, 5), on_gpu(images, *PER_IMAGE)
    there.requires_grad_()
    weights = torch.ones(24, 256, device=DEVICE)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for backend in ("auto", "reference"):
            for scale, shift in ((0.5, 1.0), scaling):
                rows = hx.gather_patches(there, slack, scale, shift, backend=backend)
                torch.autograd.grad(rows, there, weights)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_runs_inside_a_cuda_graph():
    images, plan = on_gpu(*gather_case(16, 1, torch.uint8))
    static = torch.zeros_like(images)
    hx.gather_patches(static, plan, 0.5)  # loads the kernel
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows = hx.gather_patches(static, plan, 0.5)
    static.copy_(images)
    graph.replay()
    assert torch.equal(rows, hx.gather_patches(images, plan, 0.5))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_devices_other_than_the_current_one():
    images, plan = gather_case(16, 1, torch.float32)
    expected = hx.gather_patches(images, plan)
    for current in (0, 1):
        with torch.cuda.device(current):
            for device in ("cuda:0", "cuda:1"):
                leaf = images.detach().to(device).requires_grad_()
                rows = hx.gather_patches(leaf, plan.to(device))
                rows.sum().backward()
                assert rows.device == leaf.grad.device == torch.device(device)
                assert torch.equal(rows.detach().cpu(), expected)
                assert torch.cuda.current_device() == current
    with pytest.raises(hx.ArgumentError, match="plan: its ids are on cuda:0, the images on cuda:1"):
        hx.gather_patches(images.detach().to("cuda:1"), plan.to("cuda:0"))


def test_no_more_memory_than_the_rows():
    plan = ragged_plan((80, 80), [641, 700], [0, 0], 16)
    images, plan = on_gpu(pixels((2, 1, 1280, 1280), torch.uint8), plan)
    if native.resolve_backend("auto", images.device) != "native":
        pytest.skip("needs the core with CUDA paths")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    rows = hx.gather_patches(images, plan, 1 / 255, 0.0, out_dtype=torch.bfloat16)
    assert torch.cuda.max_memory_allocated() - before <= rows.nbytes + 1024


# --- registration -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_registration(dtype):
    images, plan = gather_case(16, 3, dtype)
    images, plan, scale, shift = on_gpu(images, plan, *PER_IMAGE)
    images.requires_grad_(dtype.is_floating_point)
    packed = (plan.keep_ids, plan.keep_cu_seqlens)
    torch.library.opcheck(_gather_op, (images, *packed, scale, shift, 1.0, 0.0, 16, torch.float32, "keep"))
    torch.library.opcheck(_gather_op, (images, *packed, None, None, 0.5, 1.0, 16, torch.bfloat16, "keep"))
    rows = torch.randn(plan.keep_ids.numel(), 768, device=DEVICE)
    torch.library.opcheck(_scatter_op, (rows, *packed, scale, 1.0, list(images.shape), 16, torch.float32))


def test_compiles_into_one_graph_for_all_lengths():
    def step(x, p):
        return hx.gather_patches(x, p, 0.5, 1.0).square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.reset()
    images = pixels((3, 1, 48, 80), torch.float32).to(DEVICE).requires_grad_()
    for kept in ([4, 2, 15], [3, 9, 7], [1, 5, 2]):
        plan = ragged_plan((3, 5), kept, [1, 1, 0], 16).to(DEVICE)
        with torch.compiler.set_stance("fail_on_recompile" if kept[0] == 1 else "default"):
            (grad,) = torch.autograd.grad(compiled(images, plan), images)
        (expected,) = torch.autograd.grad(step(images, plan), images)
        assert torch.equal(grad, expected)


# --- bad input --------------------------------------------------------------------------------------------------------
def test_what_lies_elsewhere_is_named():
    images, plan = gather_case(16, 1, torch.uint8)
    there = images.to(DEVICE)
    with pytest.raises(hx.ArgumentError, match=r"plan: its ids are on cpu, the images on cuda:0"):
        hx.gather_patches(there, plan)
    with pytest.raises(hx.ArgumentError, match=r"plan: its ids are on cuda:0, the images on cpu"):
        hx.gather_patches(images, plan.to(DEVICE))
    with pytest.raises(hx.ArgumentError, match=r"scale: got a tensor on cpu, accepted is cuda:0"):
        hx.gather_patches(there, plan.to(DEVICE), torch.ones(3))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keep_ids": [0, 15, 2]}, r"plan\.keep_ids: entry 1 is 15, accepted are ids in \[0, 15\)"),
        ({"keep_ids": [-1, 3, 2]}, r"plan\.keep_ids: entry 0 is -1"),
        ({"keep_ids": [3, 3, 2]}, r"plan\.keep_ids: must be strictly ascending"),
        ({"keep_cu_seqlens": [1, 2, 3]}, r"plan\.keep_cu_seqlens: must start at 0"),
        ({"keep_cu_seqlens": [0, 4, 3]}, r"plan\.keep_cu_seqlens: must not fall"),
        ({"keep_cu_seqlens": [0, 2, 9]}, r"plan\.keep_cu_seqlens: must end at"),
    ],
    ids=str,
)
def test_debug_checks_name_wrong_values(changes, says, backend):
    images = pixels((2, 1, 48, 80), torch.uint8).to(DEVICE)
    plan = make_plan([[0, 3], [2]], [[], []], (3, 5))
    wrong = {name: torch.tensor(values, dtype=torch.int32, device=DEVICE) for name, values in changes.items()}
    wrong = replace(plan.to(DEVICE), **wrong)
    with hx.debug_checks():
        hx.gather_patches(images, with_slack(plan, 9), backend=backend)
        with pytest.raises(hx.ArgumentError, match=says):
            hx.gather_patches(images, wrong, backend=backend)
    hx.gather_patches(images, wrong, backend=backend)  # stays inside, and says nothing
    torch.cuda.synchronize()
