"""Images seen through affine maps and tone tables: one definition, the same bits from every path, no pixel too many."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from plan_helpers import with_slack
from torch._dynamo.testing import CompileCounter
from view_helpers import DTYPES, SIZES, bits, hostile_maps, images_of, maps, plan_of, table_of

import hdxray_fast as hx
from hdxray_fast.errors import ArgumentError, ArgumentTypeError
from hdxray_fast.ops import native
from hdxray_fast.ops.plan import MaskPlan
from hdxray_fast.ops.view import View, view_images_ref, view_patches

needs_core = pytest.mark.skipif(native.core is None, reason="the native core is not built")


def emulated(images: torch.Tensor, plan: MaskPlan, view: View) -> torch.Tensor:
    out = torch.empty(plan.keep_ids.numel(), images.shape[1], plan.patch_size, plan.patch_size, dtype=images.dtype)
    table = 0 if view.table is None else view.table.data_ptr()
    native.core._emulate_view(
        native._images(images, plan.patch_size),
        native._rows(plan.keep_ids, plan.keep_cu_seqlens, native.NO_SCALING),
        (view.affine.data_ptr(), table),
        out.data_ptr(),
    )
    return out


# --- the definition ---------------------------------------------------------------------------------------------------
def test_half_a_pixel_to_the_right_is_the_mean_of_two_and_half_of_zero_outside():
    images = torch.tensor([[[[10, 20, 41, 0]]]], dtype=torch.uint8)
    view = View(torch.tensor([[[1.0, 0, 0.5], [0, 1, 0]]]))
    assert view_images_ref(images, view).flatten().tolist() == [15, 31, 21, 0]  # 30.5 and 20.5 are rounded up
    left = View(torch.tensor([[[1.0, 0, -0.75], [0, 1, 0]]]))
    assert view_images_ref(images, left).flatten().tolist() == [3, 13, 25, 31]  # 2.5, 12.5, 25.25, 30.75


def test_the_table_follows_the_rounding_and_counts_for_what_lies_outside():
    images = torch.tensor([[[[10, 20]]]], dtype=torch.uint8)
    table = torch.arange(255, -1, -1, dtype=torch.uint8)[None]
    far = View(torch.tensor([[[1.0, 0, 100.0], [0, 1, 0]]]), table)
    assert view_images_ref(images, far).flatten().tolist() == [255, 255]
    near = View(torch.tensor([[[1.0, 0, 0.5], [0, 1, 0]]]), table)
    assert view_images_ref(images, near).flatten().tolist() == [255 - 15, 255 - 10]


def test_knots_of_a_16_bit_table_are_joined_by_straight_lines():
    values = torch.tensor([0, 1, 128, 255, 256, 65535], dtype=torch.int32)
    knots = torch.zeros(257, dtype=torch.int32)
    knots[1], knots[255], knots[256] = 512, 1000, 0
    images = values.to(torch.uint16).reshape(1, 1, 1, 6)
    view = View(torch.eye(2, 3)[None], knots.to(torch.uint16)[None])
    expected = [0, 2, 256, 510, 512, 1000 + math.floor((-1000 * 255 + 128) / 256)]
    assert view_images_ref(images, view).flatten().tolist() == expected


@pytest.mark.parametrize("turn", [0.0, 5.0, 20.0])
def test_it_differs_from_opencvs_fixed_point_by_its_rounding_alone(turn):
    """cv2.warpAffine rounds places to 1/32 of a pixel: at most 1/64 of the steepest step between neighbours, twice."""
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (160, 160), np.uint8), (0, 0), 2)
    noise = rng.integers(0, 256, (160, 160), np.uint8)
    for picture, most in ((smooth, 1), (noise, 9)):
        affine = maps(160, 160, turn)
        ours = view_images_ref(torch.from_numpy(np.stack([picture] * 3))[:, None], View(affine))[:, 0].numpy()
        for one, matrix in zip(ours, affine.double().numpy(), strict=True):
            theirs = cv2.warpAffine(picture, matrix, (160, 160), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
            assert np.abs(theirs.astype(int) - one).max() <= most


# --- one result -------------------------------------------------------------------------------------------------------
@needs_core
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[-1])
@pytest.mark.parametrize(("grid", "p", "channels"), SIZES)
def test_every_path_gives_the_same_bits(dtype, grid, p, channels):
    images, plan = images_of(dtype, grid, p, channels), plan_of(grid, p)
    height, width = images.shape[2:]
    looks = {f"turn {turn}": maps(height, width, turn) for turn in (0.0, 5.0, 20.0, 90.0)}
    for name, affine in {**looks, **hostile_maps()}.items():
        for table in {None, table_of(dtype)}:
            view = View(affine, table)
            expected = bits(view_patches(images, plan, view, backend="reference"))
            was = native.core.vector_path()
            try:
                for path in native.core.vector_paths():
                    native.core.set_vector_path(path)
                    assert bits(view_patches(images, plan, view, backend="native")) == expected, (name, path)
            finally:
                native.core.set_vector_path(was)
            assert bits(emulated(images, plan, view)) == expected, (name, "the GPU's body")


@needs_core
def test_a_large_image_through_small_turns_gives_the_same_bits_near_every_edge():
    """The vector path reads 16 bytes at once: patches at the right edge and in the last lines must not."""
    images, plan = images_of(torch.uint8, (12, 13), 16, 1), hx.plan_all(torch.ones(3, 12, 13, dtype=torch.bool))
    for turn in (0.0, 0.5, 3.0, 12.0):
        for zoom in (0.8, 1.0, 1.3):
            view = View(maps(192, 208, turn, zoom, shift=0.01), table_of(torch.uint8))
            expected = view_patches(images, plan, view, backend="reference")
            assert torch.equal(view_patches(images, plan, view, backend="native"), expected)


@needs_core
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[-1])
@pytest.mark.parametrize(("grid", "p", "channels"), SIZES[:3])
def test_gather_and_loss_read_through_a_view_as_from_its_picture(dtype, grid, p, channels, backend):
    images, plan = images_of(dtype, grid, p, channels), plan_of(grid, p)
    view = View(maps(*images.shape[2:], 5.0), table_of(dtype))
    picture = view_images_ref(images, view)
    scaling = {"scale": torch.tensor([0.5, 0.25, 2.0]), "shift": -0.125}
    for which in ("keep", "predict"):
        for out in (torch.float32, torch.bfloat16):
            rows = hx.gather_patches(images, plan, **scaling, out_dtype=out, which=which, view=view, backend=backend)
            plain = hx.gather_patches(picture, plan, **scaling, out_dtype=out, which=which, backend=backend)
            assert bits(rows) == bits(plain)
    pred = torch.randn(plan.predict_ids.numel(), channels * p * p, generator=torch.Generator().manual_seed(2))
    losses, gradients = [], []
    for pixels, through in ((images, view), (picture, None)):
        given = pred.clone().requires_grad_()
        loss, patch_loss = hx.reconstruction_loss(pixels, given, plan, **scaling, view=through, backend=backend)
        loss.backward()
        losses.append((loss.item(), bits(patch_loss)))
        gradients.append(bits(given.grad))
    assert losses[0] == losses[1]
    assert gradients[0] == gradients[1]


@needs_core
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[-1])
def test_the_view_that_changes_nothing_changes_nothing(dtype):
    images, plan = images_of(dtype, (6, 5), 16, 1), plan_of((6, 5), 16)
    same = View(torch.eye(2, 3).expand(3, 2, 3))
    assert bits(hx.gather_patches(images, plan, view=same)) == bits(hx.gather_patches(images, plan))


@needs_core
def test_the_gpu_bodies_of_gather_and_loss_read_packed_pixels():
    for grid, p, channels in SIZES[:3]:
        images, plan = images_of(torch.uint8, grid, p, channels), plan_of(grid, p)
        pixels = view_patches(images, plan, View(maps(*images.shape[2:], 5.0)))
        ids, cu = plan.keep_ids, plan.keep_cu_seqlens
        scaling = (torch.tensor([0.5, 0.25, 2.0]), None, 1.0, -0.5)
        for out in (torch.float32, torch.bfloat16):
            expected = native.gather(pixels, ids, cu, scaling, p, out, "keep", grid)
            rows = torch.empty_like(expected)
            _, source = native._source(pixels, ids, cu, p, "keep", grid)
            native.core._emulate_gather(
                source, native._rows(ids, cu, scaling), rows.data_ptr(), native.DTYPE_CODES[out]
            )
            assert bits(rows) == bits(expected)
        for dtype in (torch.float32, torch.bfloat16):
            loss_of_packed_pixels(pixels, ids, cu, scaling, grid, p, dtype)


def loss_of_packed_pixels(pixels, ids, cu, scaling, grid, p: int, dtype: torch.dtype) -> None:
    """The loss and its gradient by the GPU's body are the CPU's."""
    pred = torch.randn(ids.numel(), pixels[0].numel(), generator=torch.Generator().manual_seed(3)).to(dtype)
    expected = native.loss(pixels, pred, ids, cu, scaling, p, True, True, grid)
    _, source = native._source(pixels, ids, cu, p, "predict", grid)
    made = [torch.empty_like(t) for t in expected]
    partials = torch.empty(ids.numel(), dtype=torch.float64)
    there = source, native._rows(ids, cu, scaling), pred.data_ptr(), native.DTYPE_CODES[dtype]
    native.core._emulate_loss(*there, True, 0, tuple(t.data_ptr() for t in (*made, partials)))
    for ours, wanted in zip(made[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made[2], expected[2], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-8)


@needs_core
def test_rubbish_in_a_plan_reads_and_writes_nothing_outside():
    """As a GPU meets it, where nobody looks at ids before the kernel: such rows are zero."""
    images = images_of(torch.uint8, (4, 4), 16, 1)
    ids = torch.tensor([0, 15, -1, 16, 2**31 - 1, 3, 7], dtype=torch.int32)
    cu = torch.tensor([0, 2, 5, 6], dtype=torch.int32)  # the last row is slack
    plan = MaskPlan.unchecked(ids, cu, ids, cu, (4, 4), 16, 3, 3)
    out = emulated(images, plan, View(torch.eye(2, 3).expand(3, 2, 3).contiguous()))
    assert torch.equal(out[0, 0], images[0, 0, :16, :16])
    assert torch.equal(out[5, 0], images[2, 0, :16, 48:])
    assert not out[[2, 3, 4, 6]].any()
    nan = View(torch.full((3, 2, 3), math.nan))
    assert not emulated(images, plan, nan).any()


@needs_core
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[-1])
def test_slack_shows_nothing(dtype):
    images, plan = images_of(dtype, (4, 4), 16, 1), plan_of((4, 4), 16)
    view = View(maps(64, 64, 5.0), table_of(dtype))
    exact = view_patches(images, plan, view, backend="reference")
    for backend in ("native", "reference"):
        seen = view_patches(images, with_slack(plan, 9, fill=-3), view, backend=backend)
        assert bits(seen[:-9]) == bits(exact)
        assert not seen[-9:].float().any()


# --- as an operator ---------------------------------------------------------------------------------------------------
@needs_core
def test_compiled_it_is_one_graph_for_all_maps():
    images, plan = images_of(torch.uint8, (6, 5), 16, 1), plan_of((6, 5), 16)
    pred = torch.randn(plan.predict_ids.numel(), 256)
    counter = CompileCounter()

    def step(images, pred, affine, table):
        view = View(affine, table)
        rows = hx.gather_patches(images, plan, view=view)
        return rows.sum() + hx.reconstruction_loss(images, pred, plan, view=view)[0]

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for turn in (0.0, 3.0, 9.0):
        given = images, pred, maps(96, 80, turn), table_of(torch.uint8)
        assert compiled(*given).item() == step(*given).item()
    assert counter.frame_count == 1


@needs_core
def test_the_operator_is_described_truly():
    images, plan = images_of(torch.uint8, (4, 4), 8, 3), plan_of((4, 4), 8)
    view = View(maps(32, 32, 5.0), table_of(torch.uint8))
    given = images, plan.keep_ids, plan.keep_cu_seqlens, view.affine, view.table, 8, "keep"
    torch.library.opcheck(torch.ops.hdxray_fast.view_patches.default, given)


# --- bad input --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"affine": torch.full((3, 2, 3), math.nan)}, r"view\.affine: map 0 holds a value that is no finite number"),
        ({"affine": torch.zeros(3, 2, 3)}, r"view\.affine: map 0 is singular"),
        ({"affine": torch.eye(2, 3)[None]}, r"view\.affine: got shape \(1, 2, 3\)"),
        ({"affine": torch.eye(2, 3, dtype=torch.float64).expand(3, 2, 3)}, r"view\.affine: .*float64"),
        ({"table": torch.zeros(3, 255, dtype=torch.uint8)}, r"view\.table: got shape \(3, 255\)"),
        ({"table": torch.zeros(3, 256, dtype=torch.int32)}, r"view\.table: .*int32"),
    ],
)
def test_a_view_that_is_none_is_named_before_anything_is_read(change, words, backend):
    images, plan = images_of(torch.uint8, (6, 5), 16, 1), plan_of((6, 5), 16)
    view = View(**{"affine": maps(96, 80, 0.0), **change})
    with pytest.raises(ArgumentError, match=words):
        hx.gather_patches(images, plan, view=view, backend=backend)
    pred = torch.zeros(plan.predict_ids.numel(), 256)
    with pytest.raises(ArgumentError, match=words):
        hx.reconstruction_loss(images, pred, plan, view=view, backend=backend)


def test_views_of_other_things_are_refused():
    plan, view = plan_of((6, 5), 16), View(maps(96, 80, 0.0), table_of(torch.uint8))
    floats = images_of(torch.float32, (6, 5), 16, 1)
    with pytest.raises(ArgumentError, match="is for uint8 and uint16"):
        hx.gather_patches(floats, plan, view=view)
    with pytest.raises(ArgumentError, match="no gradient flows through a view"):
        hx.gather_patches(floats.requires_grad_(), plan, view=View(view.affine))
    with pytest.raises(ArgumentTypeError, match="view: got Tensor"):
        hx.gather_patches(floats.detach(), plan, view=view.affine)
    with pytest.raises(ArgumentError, match="plan has a grid"):
        view_patches(images_of(torch.uint8, (5, 5), 16, 1), plan, view)
