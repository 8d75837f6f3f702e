"""Which patches an encoder looks at when no mask plan is given: all, the valid ones, or those of the chest."""

from __future__ import annotations

import warnings
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from ..ops.compiling import not_traced, writes_graph
from ..ops.mask_plan import plan_masks
from ..ops.plan import MaskPlan
from .grey_levels import level_of_caller

Sendable = TypeVar("Sendable", MaskPlan, Tensor)


def every_patch(batch: int, grid_size: tuple[int, int], patch_size: int, device: torch.device) -> MaskPlan:
    """The plan that keeps every patch; it is made on the device without waiting for it."""
    patches = grid_size[0] * grid_size[1]
    ids = torch.arange(patches, dtype=torch.int32, device=device).repeat(batch)
    cu_seqlens = patches * torch.arange(batch + 1, dtype=torch.int32, device=device)
    return MaskPlan(ids, cu_seqlens, ids[:0], torch.zeros_like(cu_seqlens), grid_size, patch_size, patches, 0)


@not_traced(
    "patches are chosen by contours and values: make the plan before the compiled model, and pass it; graphs of "
    "hx.export_program and hx.export_onnx take the kept patches as an input"
)
def selected_patches(
    keep: str,
    images: Tensor,
    grid_size: tuple[int, int],
    patch_size: int,
    inside: Tensor | None,
    valid: Tensor | None,
    margin: int,
    contour: str = "network",
) -> MaskPlan:
    """The plan that keeps the valid patches, or those inside the chest contour and ``margin`` patches around it.

    Args:
        keep: ``"valid"`` or ``"contour"``.
        images: ``[B, C, H, W]``; looked at only for ``"contour"`` without ``inside``, and then uint8 or uint16.
        grid_size: patches of an image.
        patch_size: their side, pixels.
        inside: bool ``[B, gh, gw]``, patches of the chest.
        valid: bool ``[B, gh, gw]``, patches that are no padding; left out, all, with a warning for ``"valid"``.
        margin: patches.
        contour: how the chest is found without ``inside``; see :func:`hdxray_fast.find_contour`.

    Returns:
        A plan on the device of ``images``; an image without any wanted patch keeps one.

    Raises:
        ArgumentError: a graph is being written, which cannot hold a choice by values; or an argument is not as
            described.
    """
    if writes_graph():
        raise ArgumentError(
            f"keep: is {keep!r}, which chooses patches by values, and torch.export, torch.onnx.export and "
            "torch.jit.trace write one graph for all images; call hx.export_onnx or hx.export_program, whose graph "
            "takes the kept patches as an input, or set keep = 'all'"
        )
    if keep == "valid" and valid is None:
        warnings.warn(
            "valid: a tensor does not tell its padding, so that keep='valid' looks at all of it, and features of films "
            "that are not square are not those of embed; hand over valid (Canvas.valid_grid), or give files to embed",
            stacklevel=level_of_caller(),
        )
    batch = images.shape[0]
    shape = (batch, *grid_size)
    valid = torch.ones(shape, dtype=torch.bool) if valid is None else checked_grid("valid", valid, shape)
    if keep == "valid":
        wanted = valid
    else:
        inside = _find_inside(images, patch_size, contour) if inside is None else checked_grid("inside", inside, shape)
        wanted = inside.to(valid.device)
        if margin:
            spread = F.max_pool2d(wanted.float().unsqueeze(1), 2 * margin + 1, stride=1, padding=margin)
            wanted = spread.squeeze(1) > 0
    # Inside is kept whole, outside not at all; where nothing is inside one patch is, the same in each place of a batch.
    ratios = {"ratio_inside": 0.0, "ratio_outside": 1.0, "predict": 0.0}
    plan = plan_masks(wanted, valid, **ratios, index=[0] * batch, patch_size=patch_size)
    return sent(plan, images.device)


def sent(value: Sendable, device: torch.device) -> Sendable:
    """A plan or tensor on ``device``; from the host to a GPU it goes by page-locked memory, so that nobody waits."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def checked_grid(name: str, value: Tensor | np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """``value`` as a bool tensor of ``shape``, or an error that begins with ``name``."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name}: got {type(value).__name__}, accepted is a bool tensor or array {list(shape)}")
    if value.dtype != torch.bool or tuple(value.shape) != shape:
        raise ArgumentError(f"{name}: got {value.dtype} {list(value.shape)}, accepted is bool {list(shape)}")
    return value


def _find_inside(images: Tensor, patch_size: int, method: str) -> Tensor:
    """Chest contours of the images' first channel, bool ``[B, gh, gw]`` on the CPU."""
    if images.dtype not in (torch.uint8, torch.uint16) or images.shape[2] != images.shape[3]:
        raise ArgumentError(
            f"inside: is needed for keep='contour' with images of {images.dtype} {list(images.shape)}; it is found by "
            "itself on square uint8 and uint16 images only (see hdxray_fast.find_contour)"
        )
    if images.is_meta:
        raise ArgumentError("inside: is needed for keep='contour' with images on meta, which hold no pixels to look at")
    from ..images.canvas import Canvas
    from ..images.contour import find_contours

    side = images.shape[2]
    canvases = [Canvas(image[0].cpu().numpy(), (0, 0, side, side), {}) for image in images]
    contours = find_contours(canvases, method, patch_size)
    return torch.from_numpy(np.stack([contour.inside for contour in contours]))
