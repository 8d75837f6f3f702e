"""The CUDA kernels' index arithmetic, run on the CPU thread by thread: bit for bit the CPU path, and never outside.

The emulation runs the very functions that the kernels run (csrc/gather_index.h, csrc/loss_index.h). It throws where a
wide access would not be aligned; under ``make sanitize`` it also stops where a byte would be read or written outside.
"""

from __future__ import annotations

import pytest
import torch
from plan_helpers import ragged_plan

from hdxray_fast import _native

core = _native.core
pytestmark = pytest.mark.skipif(core is None, reason=f"the native core is not built: {_native.why_missing}")
PIXELS = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CODES = _native.DTYPE_CODES
CPU, NO_STREAM = -1, 0
# Wide (multiples of 8 or 4, a warp's worth of chunks, less, more), and not.
PATCHES = (1, 2, 3, 4, 7, 8, 12, 14, 16, 24, 32, 40)


def pixels(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype)
    if dtype == torch.uint16:
        return torch.randint(0, 65536, shape, dtype=torch.int32).to(dtype)
    return torch.randn(shape).to(dtype)


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
        return _native._images(images, self.patch), rows

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


def test_no_images_at_all():
    case = Call(torch.empty(0, 1, 32, 32), torch.zeros(5, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), 16)
    assert (case.gather(torch.float32, True) == 0).all()
    assert case.scatter(torch.ones(5, 256), torch.float32, True).numel() == 0
