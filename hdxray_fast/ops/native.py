"""The one door to the native core: validates every argument, names what is wrong, then calls ``hdxray_fast._core``.

Nothing else imports ``_core``. Tensors cross as plain integers (pointer, sizes, strides, dtype code), so the core
depends on no version of torch; see csrc/bindings.cpp for the other side.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, BackendError
from . import debug
from .compiling import constant_result
from .plan import MaskPlan, as_plain, check_tensor

try:
    from .. import _core as core
except ImportError as error:  # a source tree without a build, or a foreign machine's build
    core = None
    why_missing = str(error)
else:
    why_missing = ""

HOW_TO_BUILD = "build it with `pip install .` in the project's folder (needs a C++17 compiler and Python's headers)"
CHANNELS = (1, 3)
MAX_FLOAT32 = torch.finfo(torch.float32).max

# The codes of csrc/common/dtype.h.
DTYPE_CODES = {torch.uint8: 0, torch.uint16: 1, torch.float16: 2, torch.bfloat16: 3, torch.float32: 4}
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BACKENDS = ("auto", "native", "reference")
_CPU = -1  # device code of the core; a CUDA device is its index
_NO_STREAM = 0


# --- backends ---------------------------------------------------------------------------------------------------------
def resolve_backend(backend: str, device: torch.device) -> str:
    """``"native"`` or ``"reference"`` for one call of a pixel op.

    Raises:
        ArgumentError: `backend` is not one of ``"auto"``, ``"native"``, ``"reference"``.
        BackendError: ``"native"`` was asked for and is not there for this device.
    """
    if backend not in BACKENDS:
        raise ArgumentError(f"backend: got {backend!r}, accepted are {', '.join(map(repr, BACKENDS))}")
    if backend == "reference":
        return backend
    reason = why_not_native(device.type, device.index)
    if not reason:
        return "native"
    if backend == "auto":
        return "reference"
    raise BackendError(f"backend='native': {reason}; use backend='auto', or move the tensors with .cpu()")


def resolve_for(backend: str, *tensors: Tensor) -> str:
    """`resolve_backend` for the device of these; ``"auto"`` takes PyTorch's own operations under ``torch.func``.

    Its transforms (grad, vmap, jvp) wrap tensors, and take no operators with gradients of their own.
    """
    if backend == "auto" and not torch.compiler.is_compiling() and any(map(is_wrapped, tensors)):
        return "reference"
    return resolve_backend(backend, tensors[0].device)


def is_wrapped(tensor: Tensor) -> bool:
    """Whether it stands for others, in a transform of torch.func or in a batch of gradients (is_grads_batched)."""
    functorch = getattr(torch._C, "_functorch", None)  # there is no public way to ask
    if functorch is None:
        return False
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


@constant_result
def why_not_native(device_type: str, index: int | None = None) -> str:
    """Why the native core cannot work on a device, in words; empty if it can."""
    if core is None:
        return f"the native core is missing ({why_missing}); {HOW_TO_BUILD}"
    if device_type == "cpu":
        return ""
    if device_type != "cuda":
        return f"the core has paths for CPU and CUDA tensors, and these are on {device_type}"
    return _why_not_cuda(0 if index is None else index)


@functools.cache
def _why_not_cuda(index: int) -> str:
    return core.why_no_cuda(index)


# --- checks -----------------------------------------------------------------------------------------------------------
def check_images(images: Any, plan: MaskPlan) -> Tensor:
    """Images ``[B, C, H, W]`` that belong to `plan`, copied where the pixels of a row do not lie side by side."""
    advice = "; images.to(torch.uint8) if they hold 0 to 255, images.float() of float64"
    images = as_plain(check_tensor("images", images, tuple(DTYPE_CODES), advice=advice))
    if images.ndim != 4:
        raise ArgumentError(f"images: got shape {tuple(images.shape)}, accepted is [B, C, H, W]")
    batch, channels, height, width = images.shape
    (grid_h, grid_w), p = plan.grid_size, plan.patch_size
    if channels not in CHANNELS:
        raise ArgumentError(f"images: got {channels} channels (shape {tuple(images.shape)}), accepted are 1 or 3")
    if batch != plan.batch_size:
        raise ArgumentError(f"images: got a batch of {batch}, but plan was made for {plan.batch_size} images")
    if (height, width) != (grid_h * p, grid_w * p):
        raise ArgumentError(
            f"images: got {height} x {width} pixels, but plan has a grid of {grid_h} x {grid_w} patches of {p} pixels, "
            f"that is {grid_h * p} x {grid_w * p}"
        )
    return _readable(images)


def check_packed(plan: MaskPlan, which: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Packed ids and cu_seqlens of the kept or the predicted patches; `check_packed_values` looks at their values."""
    if which not in ("keep", "predict"):
        raise ArgumentError(f"which: got {which!r}, accepted are 'keep', 'predict'")
    if plan.device != device:
        raise ArgumentError(f"plan: its ids are on {plan.device}, the images on {device}; use plan.to(images.device)")
    if which == "keep":
        return plan.keep_ids, plan.keep_cu_seqlens
    return plan.predict_ids, plan.predict_cu_seqlens


def per_image(name: str, value: Any, images: Tensor) -> Tensor | float:
    """A number, as it is; or a float32 tensor ``[]`` or ``[B]``, as ``[B]``, contiguous.

    Under a compiler numbers become tensors, without waiting for a GPU: a number that an operator takes is a constant of
    the graph, and every other number would compile it again. Elsewhere a tensor would be two kernels for nothing.
    """
    batch = images.shape[0]
    if isinstance(value, Tensor):
        check_tensor(name, value, (torch.float32,), images.device)
        if value.shape not in ((), (batch,)):
            raise ArgumentError(f"{name}: got shape {tuple(value.shape)}, accepted are a float, [] or [B] = [{batch}]")
        if value.requires_grad:
            raise ArgumentError(f"{name}: requires_grad is set, but no gradient flows to it; pass {name}.detach()")
        return value.expand(batch).contiguous()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(
            f"{name}: got {type(value).__name__}, accepted are a float or a float32 tensor [] or [B]"
        )
    if not -MAX_FLOAT32 <= value <= MAX_FLOAT32:  # not math.isfinite, which torch.compile cannot trace; NaN fails too
        raise ArgumentError(f"{name}: got {value}, accepted is a finite float32")
    if not torch.compiler.is_compiling():
        return float(value)
    # not torch.full, whose number a compiler takes for a constant
    return torch.ones(batch, dtype=torch.float32, device=images.device) * float(value)


_FAULTS = {
    1: "{cu}: must start at 0, got {value}",
    2: "{cu}: must not fall, but entry {row} is {value}, less than the one before",
    3: "{cu}: must end at the number of ids, {n_rows}, or before it, got {value}",
    4: "{ids}: entry {row} is {value}, accepted are ids in [0, {n_patches}) for this grid",
    5: "{ids}: must be strictly ascending within each image, but entry {row} is {value}, not above the one before",
}


def check_packed_values(ids: Tensor, cu_seqlens: Tensor, n_patches: int, which: str) -> None:
    """Ids ascending within the grid, cu_seqlens from 0 to N or less without falling; ids past its end are slack.

    GPU tensors are looked at under `debug_checks` only, because that waits for the GPU. Those that a transform of
    ``torch.func`` has wrapped hold no values to look at; PyTorch's own indexing looks at them there.
    """
    if ids.device.type != "cpu":
        if not debug.checks_are_on():
            return
        ids, cu_seqlens = ids.cpu(), cu_seqlens.cpu()
    if is_wrapped(ids):
        return
    n_rows, batch = ids.numel(), cu_seqlens.numel() - 1
    if core is not None:
        fault, row, value = core.check_packed_ids(ids.data_ptr(), cu_seqlens.data_ptr(), batch, n_rows, n_patches)
    else:
        fault, row, value = _packed_fault(ids, cu_seqlens, n_patches)
    if fault:
        names = {"ids": f"plan.{which}_ids", "cu": f"plan.{which}_cu_seqlens"}
        raise ArgumentError(_FAULTS[fault].format(row=row, value=value, n_rows=n_rows, n_patches=n_patches, **names))


def _packed_fault(ids: Tensor, cu_seqlens: Tensor, n_patches: int) -> tuple[int, int, int]:
    """csrc/common/patches.cpp in Python, for machines without the core."""

    def first(bad: Tensor, fault: int, values: Tensor, offset: int = 0) -> tuple[int, int, int] | None:
        if not bool(bad.any()):
            return None
        row = int(bad.nonzero()[0]) + offset
        return fault, row, int(values[row])

    starts = torch.zeros(ids.numel() + 1, dtype=torch.bool)
    if int(cu_seqlens[0]) != 0:
        return 1, 0, int(cu_seqlens[0])
    if found := first(cu_seqlens[1:] < cu_seqlens[:-1], 2, cu_seqlens, 1):
        return found
    if int(cu_seqlens[-1]) > ids.numel():
        return 3, cu_seqlens.numel() - 1, int(cu_seqlens[-1])
    ids = ids[: int(cu_seqlens[-1])]  # what follows is slack
    starts[cu_seqlens.long()] = True
    if found := first((ids < 0) | (ids >= n_patches), 4, ids):
        return found
    return first((ids[1:] <= ids[:-1]) & ~starts[1 : ids.numel()], 5, ids, 1) or (0, 0, 0)


def check_bounds(longest: Sequence[int], bounds: Sequence[int | None]) -> None:
    """That no image has more kept and predicted patches than `bounds`, max_keep and max_predict, say."""
    for which, most, bound in zip(("keep", "predict"), longest, bounds, strict=True):
        if bound is not None and most > bound:
            raise ArgumentError(
                f"max_{which}: got {bound}, but an image of this batch has {most} patches to {which}; "
                "hdxray_fast.plan_bounds gives bounds that always suffice"
            )


# Of the images, as the core takes them: scale [B] f32 or None, shift likewise, the numbers that count where None is.
Scaling = tuple[Tensor | None, Tensor | None, float, float]
NO_SCALING: Scaling = (None, None, 1.0, 0.0)


def scaling_of(scale: Tensor | float, shift: Tensor | float) -> Scaling:
    """What `per_image` made of scale and shift, for the core."""
    per_image = [value if isinstance(value, Tensor) else None for value in (scale, shift)]
    numbers = [default if isinstance(value, Tensor) else value for value, default in ((scale, 1.0), (shift, 0.0))]
    return *per_image, *numbers


# --- calls ------------------------------------------------------------------------------------------------------------
def _require_core() -> Any:
    if core is None:
        raise BackendError(f"the native core is missing ({why_missing}); {HOW_TO_BUILD}")
    return core


def _images(images: Tensor, patch_size: int) -> tuple:
    batch, channels, height, width = images.shape
    stride_b, stride_c, stride_h, _ = images.stride()
    return (
        images.data_ptr(), DTYPE_CODES[images.dtype], batch, channels, stride_b, stride_c, stride_h,
        height // patch_size, width // patch_size, patch_size, False,
    )  # fmt: skip


def _source(
    images: Tensor, ids: Tensor, cu_seqlens: Tensor, patch_size: int, which: str, grid: Sequence[int] | None
) -> tuple[Tensor, tuple]:
    """What the core reads pixels from, and how it is told; ids and cu_seqlens are checked.

    Args:
        images: ``[B, C, H, W]``; or with a grid ``(gh, gw)`` the pixels of the packed patches alone, ``[N, C, p, p]``.
    """
    if grid is None:
        images = _readable(images)
        check_packed_values(ids, cu_seqlens, _n_patches(images, patch_size), which)
        return images, _images(images, patch_size)
    images = images.contiguous()
    check_packed_values(ids, cu_seqlens, grid[0] * grid[1], which)
    channels = images.shape[1]
    return images, (
        images.data_ptr(), DTYPE_CODES[images.dtype], cu_seqlens.numel() - 1, channels,
        channels * patch_size**2, patch_size**2, patch_size, *grid, patch_size, True,
    )  # fmt: skip


def _readable(images: Tensor) -> Tensor:
    """`images` with pixels of a row side by side; a compiler may lay them out anew after they were checked."""
    return images if images.shape[3] <= 1 or images.stride(3) == 1 else images.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(ids: Tensor, cu_seqlens: Tensor, scaling: Scaling) -> tuple:
    scale, shift, scale_value, shift_value = scaling
    pointers = ids.data_ptr(), cu_seqlens.data_ptr(), ids.numel(), _address(scale), _address(shift)
    return *pointers, scale_value, shift_value


def _place(device: torch.device) -> tuple[int, int]:
    """Device code and stream of a call: the stream that is current for this device, whatever device is."""
    if device.type == "cpu":
        return _CPU, _NO_STREAM
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _n_patches(images: Tensor, patch_size: int) -> int:
    return (images.shape[2] // patch_size) * (images.shape[3] // patch_size)


def philox(n: int, counter: tuple[int, int, int, int], key: tuple[int, int]) -> Tensor:
    """Words ``[n]`` (int64, each in [0, 2^32)) of Philox-4x32-10 from `counter` on, its first word counting up."""
    words = torch.empty(n, dtype=torch.int32)
    _require_core().philox(words.data_ptr(), n, *counter, *key)
    return words.long() & 0xFFFFFFFF


def mask_plan(
    inside: Tensor,  # [B, gh, gw] bool, contiguous
    valid: Tensor,  # [B, gh, gw] bool, likewise, on the same device
    index: Tensor,  # [B] int64, likewise
    choice: tuple[int, float, float, float, int, int],  # strategy, ratio_inside, ratio_outside, predict, seed, epoch
    bounds: tuple[int | None, int | None] = (None, None),  # max_keep, max_predict
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], tuple[int, int]]:
    """(keep_ids, keep_cu_seqlens, predict_ids, predict_cu_seqlens), int32, and (max_keep, max_predict).

    On a CUDA device, ids with a bound have room for it in every image, slack included, and nothing waits for the
    device because of them. On the CPU, and under `debug_checks`, a bound that is exceeded raises. All other arguments
    were checked by `masking.plan_masks`.
    """
    native, device = _require_core(), inside.device
    batch, grid_h, grid_w = inside.shape
    grids = (inside.data_ptr(), valid.data_ptr(), index.data_ptr(), batch, grid_h, grid_w)
    n_patches, place = grid_h * grid_w, _place(device)
    on_cpu, limits = place[0] == _CPU, (n_patches, n_patches)
    if not (on_cpu or debug.checks_are_on()):  # otherwise the whole counts are wanted, to compare them with the bounds
        limits = tuple(n_patches if bound is None else min(bound, n_patches) for bound in bounds)
    cu = torch.empty(2, batch + 1, dtype=torch.int32, device=device)
    pointers = cu[0].data_ptr(), cu[1].data_ptr()
    native.mask_plan_counts(grids, choice, limits, *pointers, *place)
    if on_cpu or debug.checks_are_on() or None in bounds:
        counts = cu.cpu().numpy()
        longest, room = np.diff(counts).max(axis=1, initial=0).tolist(), counts[:, -1].tolist()
        if on_cpu or debug.checks_are_on():
            check_bounds(longest, bounds)
    else:
        longest, room = [0, 0], [0, 0]
    if not on_cpu:
        if debug.checks_are_on() and batch and int(index.min()) < 0:
            raise ArgumentError(f"index: got {int(index.min())}, accepted is 0 <= index < {2**63}")
        for i, bound in enumerate(bounds):
            if bound is not None:
                longest[i] = min(bound, n_patches)
                room[i] = batch * longest[i]
    keep_ids = torch.empty(room[0], dtype=torch.int32, device=device)
    predict_ids = torch.empty(room[1], dtype=torch.int32, device=device)
    native.mask_plan_ids(
        grids, choice, limits, *pointers, (keep_ids.data_ptr(), predict_ids.data_ptr(), *room),
        torch.get_num_threads(), *place,
    )  # fmt: skip
    return (keep_ids, cu[0], predict_ids, cu[1]), tuple(longest)


def gather(
    images: Tensor,  # [B, C, H, W]
    ids: Tensor,  # [N] int32
    cu_seqlens: Tensor,  # [B + 1] int32
    scaling: Scaling,
    patch_size: int,
    out_dtype: torch.dtype,
    which: str,
    grid: Sequence[int] | None = None,
) -> Tensor:
    """Rows ``[N, C*p*p]`` of `out_dtype`. With a grid, `images` are the patches' pixels alone, ``[N, C, p, p]``."""
    native = _require_core()
    images, source = _source(images, ids, cu_seqlens, patch_size, which, grid)
    rows = torch.empty(ids.numel(), images.shape[1] * patch_size**2, dtype=out_dtype, device=images.device)
    native.gather(
        source, _rows(ids, cu_seqlens, scaling), rows.data_ptr(), DTYPE_CODES[out_dtype],
        torch.get_num_threads(), *_place(images.device),
    )  # fmt: skip
    return rows


def scatter(
    grad_rows: Tensor,  # [N, C*p*p], contiguous, of a float dtype
    ids: Tensor,  # [N] int32
    cu_seqlens: Tensor,  # [B + 1] int32
    scaling: Scaling,
    shape: list[int],  # B, C, H, W
    patch_size: int,
    image_dtype: torch.dtype,
) -> Tensor:
    """Gradient of the images, ``[B, C, H, W]`` of `image_dtype`: zero wherever no row came from."""
    native = _require_core()
    grad_images = torch.zeros(shape, dtype=image_dtype, device=grad_rows.device)
    check_packed_values(ids, cu_seqlens, _n_patches(grad_images, patch_size), "keep")
    native.scatter(
        _images(grad_images, patch_size), _rows(ids, cu_seqlens, scaling), grad_rows.data_ptr(),
        DTYPE_CODES[grad_rows.dtype], torch.get_num_threads(), *_place(grad_rows.device),
    )  # fmt: skip
    return grad_images


def view(
    images: Tensor,  # [B, C, H, W]
    ids: Tensor,  # [N] int32
    cu_seqlens: Tensor,  # [B + 1] int32
    affine: Tensor,  # [B, 2, 3] f32, contiguous
    table: Tensor | None,  # [B, 256] u8 | [B, 257] u16, contiguous
    patch_size: int,
    which: str,
) -> Tensor:
    """Pixels ``[N, C, p, p]`` of the listed patches, as the view shows them."""
    native, images = _require_core(), _readable(images)
    check_packed_values(ids, cu_seqlens, _n_patches(images, patch_size), which)
    size = ids.numel(), images.shape[1], patch_size, patch_size
    pixels = torch.empty(size, dtype=images.dtype, device=images.device)
    native.view(
        _images(images, patch_size), _rows(ids, cu_seqlens, NO_SCALING), (_address(affine), _address(table)),
        pixels.data_ptr(), torch.get_num_threads(), *_place(images.device),
    )  # fmt: skip
    return pixels


def loss(
    images: Tensor,  # [B, C, H, W]
    pred: Tensor,  # [N, C*p*p] of a float dtype
    ids: Tensor,  # [N] int32
    cu_seqlens: Tensor,  # [B + 1] int32
    scaling: Scaling,
    patch_size: int,
    norm_pix_loss: bool,
    with_grad: bool,
    grid: Sequence[int] | None = None,  # as in gather
) -> tuple[Tensor, Tensor, Tensor]:
    """loss ``[]`` and patch_loss ``[N]``, float32, and the loss's gradient of pred, ``[0, C*p*p]`` where not wanted."""
    made, n_rows = partial(torch.empty, dtype=torch.float32, device=images.device), ids.numel()
    loss, patch_loss, partials = made(()), made(n_rows), None
    if images.is_cuda:  # what the first stage of the reduction leaves for the second
        partials = torch.empty(n_rows, dtype=torch.float64, device=images.device)
    grad_pred = pred.new_empty(pred.shape if with_grad else (0, pred.shape[1]))
    outputs = loss, patch_loss, grad_pred if with_grad else None, partials
    _loss(images, pred, ids, cu_seqlens, scaling, patch_size, norm_pix_loss, grid, None, outputs)
    return loss, patch_loss, grad_pred


def loss_gradient(
    images: Tensor,  # as in loss
    pred: Tensor,
    ids: Tensor,
    cu_seqlens: Tensor,
    scaling: Scaling,
    grad_loss: Tensor,  # [] f32
    patch_size: int,
    norm_pix_loss: bool,
    grid: Sequence[int] | None = None,
) -> Tensor:
    """Gradient of pred, in its shape and dtype."""
    grad_pred = pred.new_empty(pred.shape)
    outputs = None, None, grad_pred, None
    _loss(images, pred, ids, cu_seqlens, scaling, patch_size, norm_pix_loss, grid, grad_loss, outputs)
    return grad_pred


def _loss(images, pred, ids, cu_seqlens, scaling, patch_size, norm_pix_loss, grid, grad_loss, outputs) -> None:
    native, pred = _require_core(), pred.contiguous()
    images, source = _source(images, ids, cu_seqlens, patch_size, "predict", grid)
    native.loss(
        source, _rows(ids, cu_seqlens, scaling), pred.data_ptr(), DTYPE_CODES[pred.dtype], norm_pix_loss,
        _address(grad_loss), tuple(map(_address, outputs)), torch.get_num_threads(), *_place(images.device),
    )  # fmt: skip


def scale_loss_gradient(
    grad_pred: Tensor,  # [N, C*p*p] of a float dtype, contiguous
    cu_seqlens: Tensor,  # [B + 1] int32
    grad_loss: Tensor,  # [] f32
) -> None:
    """Multiplies the rows of `grad_pred` that are not slack by `grad_loss`, where they lie."""
    gradient = (
        grad_pred.data_ptr(), DTYPE_CODES[grad_pred.dtype], *grad_pred.shape,
        cu_seqlens.data_ptr(), cu_seqlens.numel() - 1, grad_loss.data_ptr(),
    )  # fmt: skip
    _require_core().scale_loss_gradient(gradient, torch.get_num_threads(), *_place(grad_pred.device))
