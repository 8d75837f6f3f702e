"""Which patches an image's encoder sees and which its decoder must predict: grids and ratios in, a `MaskPlan` out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from . import native
from .compiling import not_traced
from .mask_ratio import RATIO_INSIDE, RATIO_OUTSIDE, most_patches
from .mask_rules import STRATEGIES, plan_masks_ref
from .plan import MAX_PATCH_SIZE, MaskPlan, checked_grid_size, checked_integer, dtype_names, longest_of


def plan_masks(
    inside: Tensor | np.ndarray,  # [B, gh, gw] or [gh, gw] bool
    valid: Tensor | np.ndarray,  # [B, gh, gw] or [gh, gw] bool
    ratio_inside: float = RATIO_INSIDE,
    ratio_outside: float = RATIO_OUTSIDE,
    strategy: str = "contour",
    predict: float = 1.0,
    seed: int = 0,
    epoch: int = 0,
    index: Tensor | np.ndarray | Sequence[int] | None = None,  # [B] int64
    patch_size: int = 16,
    backend: str = "auto",
    max_keep: int | None = None,
    max_predict: int | None = None,
) -> MaskPlan:
    """Choose the kept and the predicted patches of each image.

    The valid patches fall into strata; in each, exactly ``floor(ratio * n + 0.5)`` of the n patches are masked (round
    half up, in float64) and those with the smallest (key, id) are kept. Of the m masked ones, the next ``floor(predict
    * m + 0.5)`` are predicted. An image with any valid patch keeps at least one (the one with the smallest key, if
    rounding leaves none), and with any masked patch predicts at least one if ``predict > 0``. An image without valid
    patches has none of either.

    Grids on a CUDA device are planned there, with the ids the CPU would give, if the native core has CUDA paths;
    otherwise they are planned on the CPU, and the plan is moved. With both bounds nothing waits for the GPU; without,
    the call waits once, to learn the number of ids.

    Args:
        inside: patches inside the chest contour, bool ``[B, gh, gw]`` (or ``[gh, gw]`` for a batch of one).
        valid: patches that hold any of the radiograph; the others (padding) are neither kept nor predicted. Same
            shape and device.
        ratio_inside: share masked of the valid patches inside, in [0, 1].
        ratio_outside: share masked of the valid patches outside, in [0, 1].
        strategy: ``"contour"``: strata inside and outside. ``"random"``: one stratum, in which as many are masked as
            ``"contour"`` would mask, so that strategies compare at an equal budget. ``"rectangle"``: as ``"contour"``
            with a fixed box for the inside, rows ``int(.25*gh)+1 : int(.75*gh)+1`` and columns ``int(.125*gw)+1 :
            int(.75*gw)+1``. ``"block"``: as ``"contour"``, but the patches of a square block of 4 x 4 (or of the
            grid's shorter side, if that is less) share one key, so that the masked area is made of blocks; counts stay
            exact.
        predict: share predicted of the masked patches, in [0, 1].
        seed: 0 <= seed < 2^64.
        epoch: 0 <= epoch < 2^31.
        index: the images' sample indices in the data set, ``[B]``, 0 <= index < 2^63; default ``0..B-1``. An image's
            plan depends on its own index only, not on its place in the batch. Negative ones on a GPU are noticed under
            `debug_checks` only, and are taken as what their 64 bits mean without sign.
        patch_size: p, in pixels; kept in the plan for the ops that read pixels.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; all give the same ids. ``"reference"`` runs on the CPU.
        max_keep: upper bound of the kept patches of an image. On a GPU the plan has room for this many in each image,
            the slack of `MaskPlan`; an image that would keep more loses those with the highest ids, or raises under
            `debug_checks`. `plan_bounds` gives bounds that always suffice. A plan made on the CPU has no slack, and a
            bound that is exceeded raises.
        max_predict: likewise of the predicted patches.

    Returns:
        A `MaskPlan` on the device of `inside`.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described; the message names it.
        BackendError: ``backend="native"`` without the native core.
    """
    inside, valid = _grid("inside", inside), _grid("valid", valid)
    if inside.shape != valid.shape:
        raise ArgumentError(
            f"valid: got shape {tuple(valid.shape)}, but inside has {tuple(inside.shape)}; they must agree"
        )
    if inside.device != valid.device:
        raise ArgumentError(f"valid: is on {valid.device}, but inside is on {inside.device}; they must agree")
    if strategy not in STRATEGIES:
        raise ArgumentError(f"strategy: got {strategy!r}, accepted are {', '.join(map(repr, STRATEGIES))}")
    choice = (
        STRATEGIES.index(strategy),
        _share("ratio_inside", ratio_inside),
        _share("ratio_outside", ratio_outside),
        _share("predict", predict),
        checked_integer("seed", seed, 0, 2**64),
        checked_integer("epoch", epoch, 0, 2**31),
    )
    patch_size = checked_integer("patch_size", patch_size, 1, MAX_PATCH_SIZE + 1)
    bounds = _bound("max_keep", max_keep), _bound("max_predict", max_predict)
    return _plan(inside, valid, index, choice, bounds, patch_size, backend)


def plan_all(valid: Tensor | np.ndarray, patch_size: int = 16, max_keep: int | None = None) -> MaskPlan:
    """The plan that keeps every valid patch and predicts none: the encoder's dense path.

    Args:
        valid: bool ``[B, gh, gw]`` or ``[gh, gw]``.
        patch_size: p, in pixels.
        max_keep: upper bound of the valid patches of an image, as in `plan_masks`; the patches of a grid always
            suffice.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described.
    """
    valid = _grid("valid", valid)
    patch_size = checked_integer("patch_size", patch_size, 1, MAX_PATCH_SIZE + 1)
    keep_all = (STRATEGIES.index("contour"), 0.0, 0.0, 0.0, 0, 0)
    return _plan(valid, valid, None, keep_all, (_bound("max_keep", max_keep), 0), patch_size, "auto")


def plan_bounds(
    grid_size: Sequence[int],
    ratio_inside: float = RATIO_INSIDE,
    ratio_outside: float = RATIO_OUTSIDE,
    predict: float = 1.0,
) -> tuple[int, int]:
    """``(max_keep, max_predict)`` for `plan_masks` that no image exceeds, whatever its grids and the strategy.

    They allow for images that are all inside or all outside and have no padding, so slack is what real ones have less.
    Bounds measured on the data at hand are tighter, but have to be watched.

    Args:
        grid_size: ``(gh, gw)``.
        ratio_inside: share masked of the patches inside, in [0, 1].
        ratio_outside: share masked of the patches outside, in [0, 1].
        predict: share predicted of the masked patches, in [0, 1].

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described.
    """
    grid_h, grid_w = checked_grid_size("grid_size", grid_size)
    ratios = _share("ratio_inside", ratio_inside), _share("ratio_outside", ratio_outside)
    return most_patches(grid_h * grid_w, *ratios, _share("predict", predict))


@not_traced("how many patches an image keeps depends on values: make the plan before the compiled model, and pass it")
def _plan(
    inside: Tensor,  # [B, gh, gw] bool, contiguous, as valid
    valid: Tensor,
    index: object,
    choice: tuple[int, float, float, float, int, int],  # as plan_masks_ref
    bounds: tuple[int | None, int | None],
    patch_size: int,
    backend: str,
) -> MaskPlan:
    """`plan_masks` with all arguments checked but `index` and `backend`."""
    device, cpu = inside.device, torch.device("cpu")
    runs = native.resolve_backend(backend, cpu)
    on_device = device.type == "cuda" and runs == "native" and native.resolve_backend("auto", device) == "native"
    where = device if on_device else cpu
    arguments = inside.to(where), valid.to(where), _indices(index, inside.shape[0], where), choice
    if runs == "native":
        packed, longest = native.mask_plan(*arguments, bounds)
    else:
        packed = plan_masks_ref(*arguments)
        longest = longest_of(packed[1].numpy()), longest_of(packed[3].numpy())
        native.check_bounds(longest, bounds)
    plan = MaskPlan.unchecked(*packed, tuple(inside.shape[1:]), patch_size, *longest)
    return plan if where == device else plan.to(device)


# --- arguments --------------------------------------------------------------------------------------------------------
def _grid(name: str, value: object) -> Tensor:
    """A bool grid as a contiguous tensor ``[B, gh, gw]``."""
    if isinstance(value, np.ndarray):
        if value.dtype != np.bool_:
            raise ArgumentError(f"{name}: got dtype {value.dtype}, accepted is bool")
        value = torch.from_numpy(np.ascontiguousarray(value))
    elif not isinstance(value, Tensor):
        raise ArgumentTypeError(
            f"{name}: got {type(value).__name__}, accepted are a bool tensor or NumPy array [B, gh, gw]"
        )
    if value.dtype != torch.bool:
        raise ArgumentError(f"{name}: got dtype {dtype_names([value.dtype])}, accepted is bool")
    if value.is_meta:
        raise ArgumentError(f"{name}: is on meta, which holds no values to plan from")
    if value.ndim == 2:
        value = value.unsqueeze(0)
    if value.ndim != 3 or 0 in value.shape[1:]:
        raise ArgumentError(
            f"{name}: got shape {tuple(value.shape)}, accepted are [B, gh, gw] and [gh, gw], at least 1 x 1"
        )
    if value.numel() > 2**31 - 1:
        raise ArgumentError(f"{name}: got {value.numel()} patches, int32 ids allow at most {2**31 - 1} in one batch")
    return value.contiguous()


def _share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise ArgumentTypeError(f"{name}: got {type(value).__name__}, accepted is a number in [0, 1]")
    if not 0.0 <= value <= 1.0:
        raise ArgumentError(f"{name}: got {value}, accepted is a number in [0, 1]")
    return float(value)


def _bound(name: str, value: object) -> int | None:
    return None if value is None else checked_integer(name, value, 0, 2**31)


def _indices(value: object, batch: int, device: torch.device) -> Tensor:
    """Sample indices as a contiguous ``[B]`` int64 tensor on `device`; not waiting for it."""
    if value is None:
        return torch.arange(batch, device=device)
    if not isinstance(value, (Tensor, np.ndarray)):
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise ArgumentTypeError(f"index: got {type(value).__name__}, accepted are integers [B]")
        value = np.array([checked_integer("index", i, 0, 2**63) for i in value], dtype=np.int64)
    elif isinstance(value, np.ndarray) and value.dtype.kind == "u" and value.size and int(value.max()) >= 2**63:
        raise ArgumentError(f"index: got {int(value.max())}, accepted is 0 <= index < {2**63}")
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise ArgumentError(f"index: got dtype {value.dtype}, accepted are integers")
        value = torch.from_numpy(np.ascontiguousarray(value, dtype=np.int64))
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ArgumentError(f"index: got dtype {dtype_names([value.dtype])}, accepted are integers")
    if value.shape != (batch,):
        raise ArgumentError(f"index: got shape {tuple(value.shape)}, accepted is [B] = [{batch}]")
    if value.device.type != "cuda" or device.type != "cuda":
        value = value.to("cpu", torch.int64)
        if batch and int(value.min()) < 0:
            raise ArgumentError(f"index: got {int(value.min())}, accepted is 0 <= index < {2**63}")
        if device.type == "cuda" and value.is_pinned():
            value = value.clone()  # pageable memory is copied before .to returns; the caller may reuse its own
    return value.to(device, torch.int64, non_blocking=True).contiguous()
