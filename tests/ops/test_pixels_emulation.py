"""The CUDA kernels' index arithmetic, run on the CPU thread by thread: bit for bit the CPU path, and never outside.

The emulation runs the very functions that the kernels run (csrc/gpu/gather_body.h, csrc/gpu/loss_body.h). It throws
where a wide access would not be aligned; under ``make sanitize`` it also stops where a byte would be read or written
outside.
"""

from __future__ import annotations

import pytest
import torch
from pixel_helpers import FLOATS, PIXELS, pixels
from plan_helpers import ragged_plan

from hdxray_fast.ops import native

core = native.core
pytestmark = pytest.mark.skipif(core is None, reason=f"the native core is not built: {native.why_missing}")
CODES = native.DTYPE_CODES
CPU, NO_STREAM = -1, 0
# Wide (multiples of 8 or 4, a warp's worth of chunks, less, more), and not.
PATCHES = (1, 2, 3, 4, 7, 8, 12, 14, 16, 24, 32, 40)


class Call:
    """One call of the core by hand: images, packed ids, and scale and shift per image."""

    def __init__(self, images: torch.Tensor, ids: torch.Tensor, cu: torch.Tensor, patch: int) -> None:
        self.images, self.ids, self.cu, self.patch = images, ids, cu, patch
        batch = images.shape[0]
        self.scale, self.shift = torch.rand(batch) + 0.5, torch.randn(batch)
        self.row_size = images.shape[1] * patch**2

    def tuples(self, images: torch.Tensor | None = None) -> tuple[tuple, tuple]:
        images = self.images if images is None else images
        rows = (
            self.ids.data_ptr(), self.cu.data_ptr(), self.ids.numel(), self.scale.data_ptr(), self.shift.data_ptr(),
            1.0, 0.0,
        )  # fmt: skip
        return native._images(images, self.patch), rows

    def gather(self, out_dtype: torch.dtype, emulated: bool) -> torch.Tensor:
        """Rows, poisoned before, so that an element that nobody writes shows."""
        rows = torch.full((self.ids.numel(), self.row_size), float("nan"), dtype=out_dtype)
        if emulated:
            core._emulate_gather(*self.tuples(), rows.data_ptr(), CODES[out_dtype])
        else:
            core.gather(*self.tuples(), rows.data_ptr(), CODES[out_dtype], 1, CPU, NO_STREAM)
        return rows

    def scatter(self, grad_rows: torch.Tensor, dtype: torch.dtype, emulated: bool) -> torch.Tensor:
        grad_images = torch.full(self.images.shape, -7.0, dtype=dtype)
        arguments = (*self.tuples(grad_images), grad_rows.data_ptr(), CODES[grad_rows.dtype])
        core._emulate_scatter(*arguments) if emulated else core.scatter(*arguments, 1, CPU, NO_STREAM)
        return grad_images


def call(patch: int, channels: int, dtype: torch.dtype, counts=(4, 0, 9)) -> Call:
    """Three images on a 3 x 3 grid, the middle one without a patch."""
    plan = ragged_plan((3, 3), list(counts), [0] * len(counts), patch)
    images = pixels((len(counts), channels, 3 * patch, 3 * patch), dtype)
    return Call(images, plan.keep_ids, plan.keep_cu_seqlens, patch)


# --- gather -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("patch", PATCHES)
def test_gather_equals_the_cpu_path(patch, channels):
    for dtype in PIXELS:
        case = call(patch, channels, dtype)
        for out_dtype in FLOATS:
            assert torch.equal(case.gather(out_dtype, True), case.gather(out_dtype, False)), (dtype, out_dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("offset", range(17))
def test_gather_takes_images_at_any_address_and_stride(offset, channels):
    """Windows of a larger image: every alignment of the first pixel, and line strides that break it again."""
    for width in (96, 97, 100, 104):
        for dtype in PIXELS:
            case = call(16, channels, dtype, (3, 5))
            case.images = pixels((2, channels, 50, width), dtype)[:, :, 1:49, offset : offset + 48]
            for out_dtype in FLOATS:
                assert torch.equal(case.gather(out_dtype, True), case.gather(out_dtype, False)), (width, dtype)


@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
def test_gather_writes_rows_at_any_address(out_dtype, offset):
    case = call(16, 1, torch.uint8)
    expected = case.gather(out_dtype, False)
    buffer = torch.full((13 * 256 + 32,), float("nan"), dtype=out_dtype)
    core._emulate_gather(*case.tuples(), buffer[offset:].data_ptr(), CODES[out_dtype])
    assert torch.equal(buffer[offset : offset + 13 * 256].view(13, 256), expected)
    assert buffer[:offset].isnan().all()
    assert buffer[offset + 13 * 256 :].isnan().all()


# --- scatter ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", PATCHES)
def test_scatter_equals_the_cpu_path(patch, channels):
    for dtype in FLOATS:
        case = call(patch, channels, dtype)
        for row_dtype in FLOATS:
            grads = torch.randn(13, case.row_size).to(row_dtype)
            assert torch.equal(case.scatter(grads, dtype, True), case.scatter(grads, dtype, False)), (dtype, row_dtype)


# --- which image owns a row -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [1, 2, 31, 32, 33, 63, 64, 65, 1000, 1024, 1025, 2200])
def test_every_row_finds_its_image(batch):
    """Ragged counts, empty images among them, first and last ones too."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        counts = torch.randint(0, 4, (batch,), generator=generator)
        counts[torch.rand(batch, generator=generator) < (0.0, 0.3, 0.9)[seed]] = 0
        ids = torch.cat([torch.arange(n, dtype=torch.int32) for n in counts.tolist()] or [torch.empty(0)])
        cu = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32)
        case = Call(pixels((batch, 1, 2, 2), torch.uint8), ids.to(torch.int32), cu, 1)
        assert torch.equal(case.gather(torch.float32, True), case.gather(torch.float32, False))


# --- slack and values that no plan has --------------------------------------------------------------------------------
@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (16, 3), (7, 1), (32, 1)])
@pytest.mark.parametrize("slack", [1, 3, 64])
def test_slack_rows_are_zero_and_scatter_nothing(patch, channels, slack):
    case = call(patch, channels, torch.float32)
    expected = case.gather(torch.bfloat16, False)
    grads = torch.randn(13 + slack, case.row_size)
    expected_grads = case.scatter(grads[:13], torch.float32, False)
    case.ids = torch.cat([case.ids, torch.zeros(slack, dtype=torch.int32)])
    rows = case.gather(torch.bfloat16, True)
    assert torch.equal(rows[:13], expected)
    assert (rows[13:] == 0).all()
    assert torch.equal(case.scatter(grads, torch.float32, True), expected_grads)


def test_ids_outside_the_grid_are_rows_of_zeros():
    case = call(16, 1, torch.uint8)
    good = case.gather(torch.float32, False)
    for row, wrong in ((0, -1), (5, 9), (7, 2**31 - 1), (12, -(2**31))):
        case.ids[row] = wrong
    rows = case.gather(torch.float32, True)
    bad = torch.tensor([0, 5, 7, 12])
    assert (rows[bad] == 0).all()
    rest = torch.ones(13, dtype=torch.bool)
    rest[bad] = False
    assert torch.equal(rows[rest], good[rest])


@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (8, 3), (7, 1)])
def test_no_values_lead_outside(patch, channels):
    """Random ids and cu_seqlens: each row is some patch of some image, or zero, and all are written."""
    generator = torch.Generator().manual_seed(patch)
    for _ in range(40):
        case = call(patch, channels, torch.float32)
        case.images.abs_().add_(0.5)
        case.scale.fill_(1.0)
        case.shift.fill_(0.0)
        wild = torch.rand(1, generator=generator) < 0.5
        low, high = (-(2**31), 2**31 - 1) if wild else (-2, 15)
        case.ids = torch.randint(low, high, (13,), generator=generator).to(torch.int32)
        case.cu = torch.randint(low, high, (4,), generator=generator).to(torch.int32)
        everything = Call(case.images, torch.arange(9, dtype=torch.int32).repeat(3), torch.arange(4).int() * 9, patch)
        everything.scale.fill_(1.0)
        everything.shift.fill_(0.0)
        patches = everything.gather(torch.float32, False)
        rows = case.gather(torch.float32, True)
        known = (rows[:, None] == patches[None]).all(-1).any(-1)
        assert (known | (rows == 0).all(-1)).all()
        written = case.scatter(torch.ones(13, case.row_size), torch.float32, True)
        assert torch.isin(written, torch.tensor([-7.0, 1.0])).all()


# --- loss -------------------------------------------------------------------------------------------------------------
def loss_of(
    case: Call, pred: torch.Tensor, norm_pix_loss: bool, emulated: bool, with_grad: bool = True, upstream=None
) -> tuple[torch.Tensor, ...]:
    """loss, patch_loss, and with_grad the gradient for `upstream`, 1 where that is None; poisoned before."""
    n_rows = case.ids.numel()
    loss, patch_loss = (torch.full(shape, float("nan")) for shape in ((), (n_rows,)))
    grad = torch.full_like(pred, float("nan")) if with_grad else None
    partials = torch.full((n_rows,), float("nan"), dtype=torch.float64)
    grad_loss = None if upstream is None else torch.tensor(upstream)
    pointers = tuple(native._address(t) for t in (loss, patch_loss, grad, partials))
    arguments = (
        *case.tuples(),
        pred.data_ptr(),
        CODES[pred.dtype],
        norm_pix_loss,
        native._address(grad_loss),
        pointers,
    )
    core._emulate_loss(*arguments) if emulated else core.loss(*arguments, 1, CPU, NO_STREAM)
    return (loss, patch_loss, grad) if with_grad else (loss, patch_loss)


def unit_scale(case: Call, dtype: torch.dtype) -> None:
    """Targets of order one, so that one tolerance fits all dtypes."""
    case.scale.mul_({torch.uint8: 1 / 64, torch.uint16: 1 / 16384}.get(dtype, 1.0))


def assert_close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, what: object) -> None:
    """Sums are taken in another order than on the CPU, and gradients are rounded to their dtype."""
    last_bit = {torch.float32: 0.0, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    bound = (2e-5 + last_bit) * expected.abs().max().item() + 1e-7
    assert (got.double() - expected.double()).abs().max().item() <= bound, what


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", PATCHES)
def test_loss_equals_the_cpu_path(patch, channels, norm_pix_loss):
    if norm_pix_loss and patch * channels == 1:
        pytest.skip("one pixel has no variance")
    for dtype in PIXELS:
        case = call(patch, channels, dtype)
        unit_scale(case, dtype)
        for pred_dtype in FLOATS:
            pred = torch.randn(13, case.row_size).to(pred_dtype)
            for upstream in (None, 3.0):
                ours, theirs = (loss_of(case, pred, norm_pix_loss, e, upstream=upstream) for e in (True, False))
                for name, a, b in zip(("loss", "patch_loss", "grad"), ours, theirs, strict=True):
                    assert_close(a, b, a.dtype, (name, dtype, pred_dtype))
            without = loss_of(case, pred, norm_pix_loss, True, with_grad=False)
            assert all(torch.equal(a, b) for a, b in zip(without, ours, strict=False))


@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_loss_takes_images_and_predictions_at_any_address(offset):
    for dtype in PIXELS:
        case = call(16, 1, dtype, (3, 5))
        unit_scale(case, dtype)
        case.images = pixels((2, 1, 50, 97), dtype)[:, :, 1:49, offset : offset + 48]
        for pred_dtype in FLOATS:
            pred = torch.randn(8 * 256 + 16).to(pred_dtype)[offset : offset + 8 * 256].view(8, 256)
            ours, theirs = (loss_of(case, pred, True, emulated) for emulated in (True, False))
            for a, b in zip(ours, theirs, strict=True):
                assert_close(a, b, a.dtype, (dtype, pred_dtype))


@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (16, 3), (7, 1), (32, 1)])
@pytest.mark.parametrize("slack", [1, 3, 64])
def test_slack_rows_cost_nothing(patch, channels, slack):
    """The mean is over the real rows, and slack has neither loss nor gradient, whatever its predictions are."""
    case = call(patch, channels, torch.float32)
    pred = torch.randn(13 + slack, case.row_size)
    pred[13:] = float("nan")
    expected = loss_of(case, pred[:13], True, False)
    case.ids = torch.cat([case.ids, torch.zeros(slack, dtype=torch.int32)])
    for emulated in (True, False):
        loss, *rows = loss_of(case, pred, True, emulated)
        assert loss.item() == pytest.approx(expected[0].item(), rel=1e-5)
        for got, wanted in zip(rows, expected[1:], strict=True):
            assert_close(got[:13], wanted, torch.float32, emulated)
            assert (got[13:] == 0).all()


def test_nothing_predicted_is_a_loss_of_zero():
    case = call(16, 1, torch.uint8, (0, 0))
    assert loss_of(case, torch.empty(0, 256), True, True)[0].item() == 0.0
    case.ids = torch.zeros(5, dtype=torch.int32)  # slack only
    for made in loss_of(case, torch.ones(5, 256), True, True):
        assert (made == 0).all()


@pytest.mark.parametrize(("patch", "channels"), [(16, 1), (8, 3), (7, 1)])
def test_no_values_lead_the_loss_outside(patch, channels):
    generator = torch.Generator().manual_seed(patch)
    for _ in range(40):
        case = call(patch, channels, torch.float32)
        wild = torch.rand(1, generator=generator) < 0.5
        low, high = (-(2**31), 2**31 - 1) if wild else (-2, 15)
        case.ids = torch.randint(low, high, (13,), generator=generator).to(torch.int32)
        case.cu = torch.randint(low, high, (4,), generator=generator).to(torch.int32)
        pred = torch.randn(13, case.row_size, generator=generator)
        assert all(t.isfinite().all() for t in loss_of(case, pred, True, True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("rows", "row_size", "real"), [(5, 256, 5), (7, 49, 4), (3, 3, 9), (2, 1, 0), (0, 4, 0)])
def test_scaling_a_gradient_gives_the_same_bits_and_spares_slack(rows, row_size, real, dtype):
    """By any number of threads, at any address."""
    cu = torch.tensor([0, real], dtype=torch.int32)
    given = torch.randn(rows, row_size).to(dtype)
    for factor in (1.0, 0.37, 65536.0):
        expected, end = given.clone(), min(real, rows)
        expected[:end] = (given[:end].float() * factor).to(dtype)
        grad_loss = torch.tensor(factor)
        for offset, threads in ((0, 1), (0, 64), (1, 3), (3, 1000)):
            for path in (*native.core.vector_paths(), None):
                buffer = torch.full((rows * row_size + 16,), -7.0, dtype=dtype)
                made = buffer[offset : offset + rows * row_size].view(rows, row_size).copy_(given)
                tensors = made.data_ptr(), CODES[dtype], rows, row_size, cu.data_ptr(), 1, grad_loss.data_ptr()
                if path is None:
                    core._emulate_scale_loss_gradient(tensors, threads)
                else:
                    before = core.vector_path()
                    core.set_vector_path(path)
                    core.scale_loss_gradient(tensors, 1, CPU, NO_STREAM)
                    core.set_vector_path(before)
                assert torch.equal(made, expected), (factor, offset, threads, path)
                assert (buffer[:offset] == -7.0).all()
                assert (buffer[offset + rows * row_size :] == -7.0).all()


def test_large_sums_keep_their_digits():
    """16-bit pixels near the top of their range: one pass over sums of squares would lose the variance."""
    case = call(16, 1, torch.uint16)
    case.images = (65000 + torch.randint(0, 16, case.images.shape)).to(torch.uint16)
    case.scale.fill_(1.0)
    case.shift.fill_(0.0)
    pred = torch.zeros(13, 256)
    ours, theirs = (loss_of(case, pred, True, emulated) for emulated in (True, False))
    assert_close(ours[2], theirs[2], torch.float32, "grad")
    assert ours[0].item() == pytest.approx(255 / 256, rel=1e-4)  # of a target with unit variance, unbiased


# --- the search by itself ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [0, 1, 2, 31, 32, 33, 64, 65, 1023, 1024, 1025, 40000])
def test_the_search_equals_searchsorted(batch):
    """Every row of small batches, the rows around every boundary of large ones, rows before and after all."""
    for density in (0.0, 0.5, 0.99):
        counts = torch.randint(0, 5, (batch,)) * (torch.rand(batch) >= density)
        cu = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32)
        end = int(cu[-1])
        first, n = (0, end + 3) if end < 5000 else (end - 4000, 4010)
        images = torch.full((n,), -1, dtype=torch.int32)
        core._emulate_image_of_row(cu.data_ptr(), batch, first, n, images.data_ptr())
        expected = torch.searchsorted(
            cu[1:].contiguous(), torch.arange(first, first + n, dtype=torch.int32), right=True
        )
        assert torch.equal(images.long(), expected)


def test_the_search_stays_in_range_for_any_values():
    generator = torch.Generator().manual_seed(3)
    for batch in (1, 7, 33, 100, 1500):
        for _ in range(20):
            cu = torch.randint(-(2**31), 2**31 - 1, (batch + 1,), generator=generator).to(torch.int32)
            images = torch.full((50,), -1, dtype=torch.int32)
            core._emulate_image_of_row(cu.data_ptr(), batch, 0, 50, images.data_ptr())
            assert ((images >= 0) & (images <= batch)).all()


def test_no_images_at_all():
    case = Call(torch.empty(0, 1, 32, 32), torch.zeros(5, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), 16)
    assert (case.gather(torch.float32, True) == 0).all()
    assert case.scatter(torch.ones(5, 256), torch.float32, True).numel() == 0
