"""A view of images: an affine map and a tone table each, read through at the chosen patches and nowhere else.

To the last bit: pixel (x, y) of the view, x the column, lies at ``(a0 x + a1 y + a2, a3 x + a4 y + a5)`` in the image,
its value is bilinear between four pixels (0 outside the image), of integers rounded half up, and then looked up in the
table. All in fp32, every product and sum rounded on its own; csrc/common/view_index.h has the formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from . import debug, flops, native
from .operands import TABLE_SIZES, check_pixels, check_view_operands
from .plan import MaskPlan, rows_with_patch


@dataclass(frozen=True)
class View:
    """How each image of a batch is looked at.

    Attributes:
        affine: ``[B, 2, 3] float32``, from the view to the image: pixel ``(x, y)`` of the view shows the image at
            ``affine @ (x, y, 1)``, as the matrix that ``cv2.warpAffine`` takes with ``WARP_INVERSE_MAP``; coordinates
            are those of pixel centres.
        table: what each value becomes after that, or None: of uint8 images ``[B, 256] uint8``; of uint16 images
            ``[B, 257] uint16``, the new values at 0, 256, ..., 65536 with straight lines between them. Float images
            have none.
    """

    affine: Tensor
    table: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> View:
        """The same on another device."""
        table = None if self.table is None else self.table.to(device, non_blocking=non_blocking)
        return View(self.affine.to(device, non_blocking=non_blocking), table)


def check_view(view: Any, images: Tensor, values: bool = False) -> View:
    """A view that belongs to `images` ``[B, C, H, W]``; `values`: look at its numbers too (`check_map_values`).

    Raises:
        ArgumentError, ArgumentTypeError: shape, dtype or device is wrong.
    """
    if not isinstance(view, View):
        raise ArgumentTypeError(f"view: got {type(view).__name__}, accepted is a View or None")
    view = View(*check_view_operands(images, view.affine, view.table, "view."))
    if values and not torch.compiler.is_compiling():
        check_map_values(view.affine)
    return view


def check_map_values(affine: Tensor) -> None:
    """That every map is finite, and none singular. GPU tensors are looked at under `debug_checks` only: it waits."""
    if affine.device.type != "cpu" and not debug.checks_are_on():
        return
    finite = torch.isfinite(affine).flatten(1).all(1)
    if not bool(finite.all()):
        raise ArgumentError(f"view.affine: map {int((~finite).nonzero()[0])} holds a value that is no finite number")
    area = (affine[:, 0, 0].double() * affine[:, 1, 1] - affine[:, 0, 1].double() * affine[:, 1, 0]).abs()
    if not bool((area > 0).all()):
        flat = int((area == 0).nonzero()[0])
        raise ArgumentError(f"view.affine: map {flat} is singular: it shows no more than a line of the image")


def view_patches(
    images: Tensor,  # [B, C, H, W] u8 | u16 | f16 | bf16 | f32
    plan: MaskPlan,
    view: View,
    which: str = "keep",
    backend: str = "auto",
) -> Tensor:
    """The pixels of the kept (or predicted) patches as the view shows them; no other is computed.

    Args:
        images: as in `gather_patches`; no gradient flows to them.
        plan: which patches, of the view.
        view: one map, and table, for each image.
        which: ``"keep"`` or ``"predict"``.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; the same bits from each.

    Returns:
        ``[N, C, p, p]``, dtype of the images; zero in a plan's slack.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described, or they do not fit together; nothing was
        read.
        BackendError: ``backend="native"`` where it cannot run.
    """
    if not isinstance(plan, MaskPlan):
        raise ArgumentTypeError(f"plan: got {type(plan).__name__}, accepted is a MaskPlan (see plan_masks)")
    images = native.check_images(images, plan).detach()
    ids, cu_seqlens = native.check_packed(plan, which, images.device)
    reference = native.resolve_backend(backend, images.device) == "reference"
    view = check_view(view, images, values=reference)
    if reference:
        if not torch.compiler.is_compiling():
            native.check_packed_values(ids, cu_seqlens, plan.grid_size[0] * plan.grid_size[1], which)
        return view_patches_ref(images, plan, view, which)
    return _view_op(images, ids, cu_seqlens, view.affine, view.table, plan.patch_size, which)


# --- in plain PyTorch -------------------------------------------------------------------------------------------------
def view_images_ref(images: Tensor, view: View) -> Tensor:
    """The whole view, ``[B, C, H, W]`` of the images' dtype, in plain PyTorch. Arguments are not checked."""
    batch, channels, height, width = images.shape
    device = images.device
    x = torch.arange(width, dtype=torch.float32, device=device)
    y = torch.arange(height, dtype=torch.float32, device=device)[:, None]
    a = view.affine[..., None, None]  # [B, 2, 3, 1, 1]
    sx = (a[:, 0, 0] * x + a[:, 0, 1] * y) + a[:, 0, 2]  # [B, H, W]
    sy = (a[:, 1, 0] * x + a[:, 1, 1] * y) + a[:, 1, 2]
    near = (sx > -1) & (sx < width) & (sy > -1) & (sy < height)
    sx, sy = (torch.where(near, s, 0) for s in (sx, sy))
    left, top = sx.floor(), sy.floor()
    fx, fy = (sx - left)[:, None], (sy - top)[:, None]  # [B, 1, H, W]
    left, top = left.long(), top.long()
    flat = images.float().reshape(batch, channels, height * width)

    def pixel(row: Tensor, column: Tensor) -> Tensor:  # [B, C, H, W]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        place = torch.where(inside, row * width + column, 0).reshape(batch, 1, -1).expand(-1, channels, -1)
        return torch.where(inside[:, None], flat.gather(2, place).reshape(batch, channels, height, width), 0)

    upper, lower = (_between(pixel(row, left), pixel(row, left + 1), fx) for row in (top, top + 1))
    value = torch.where(near[:, None], _between(upper, lower, fy), 0)
    if images.dtype not in TABLE_SIZES:
        return value.to(images.dtype)
    levels = (value + 0.5).long()
    if view.table is not None:
        levels = _looked_up(view.table.long(), levels, images.dtype)
    return levels.to(images.dtype)


def _between(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    return start + (end - start) * share


def _looked_up(table: Tensor, levels: Tensor, dtype: torch.dtype) -> Tensor:
    flat = levels.flatten(1)
    if dtype == torch.uint8:
        return table.gather(1, flat).reshape(levels.shape)
    start, end = table.gather(1, flat >> 8), table.gather(1, (flat >> 8) + 1)
    return (start + (((end - start) * (flat & 255) + 128) >> 8)).reshape(levels.shape)


def view_patches_ref(images: Tensor, plan: MaskPlan, view: View, which: str = "keep") -> Tensor:
    """`view_patches` in plain PyTorch: the whole view, patchified and indexed. Arguments are not checked."""
    (gh, gw), p, channels = plan.grid_size, plan.patch_size, images.shape[1]
    seen = view_images_ref(images, view).reshape(-1, channels, gh, p, gw, p)
    seen = seen.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, p, p)  # [B * gh * gw, C, p, p]
    real, image = rows_with_patch(plan, which)
    ids = plan.keep_ids if which == "keep" else plan.predict_ids
    place = torch.where(real, image * (gh * gw) + ids, 0)
    if images.dtype == torch.uint16:  # few operations know it
        return torch.where(real[:, None, None, None], seen.long()[place], 0).to(torch.uint16)
    return torch.where(real[:, None, None, None], seen[place], 0).to(images.dtype)


# --- registration -----------------------------------------------------------------------------------------------------
@torch.library.custom_op("hdxray_fast::view_patches", mutates_args=(), device_types=("cpu", "cuda"))
def _view_op(
    images: Tensor,
    ids: Tensor,
    cu_seqlens: Tensor,
    affine: Tensor,
    table: Tensor | None,
    patch_size: int,
    which: str,
) -> Tensor:
    ids, cu_seqlens = check_pixels(images, ids, cu_seqlens, patch_size, which)
    affine, table = check_view_operands(images, affine, table)
    check_map_values(affine)
    return native.view(images, ids, cu_seqlens, affine, table, patch_size, which)


@_view_op.register_fake
def _(images, ids, cu_seqlens, affine, table, patch_size, which):
    check_pixels(images, ids, cu_seqlens, patch_size, which)
    check_view_operands(images, affine, table)
    return images.new_empty(ids.shape[0], images.shape[1], patch_size, patch_size)


flops.count_nothing(torch.ops.hdxray_fast.view_patches)
