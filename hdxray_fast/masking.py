"""Which patches an image's encoder sees and which its decoder must predict: grids and ratios in, a `MaskPlan` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import _native
from .errors import ArgumentError, ArgumentTypeError
from .masking_rules import STRATEGIES, most_patches, plan_masks_ref


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class MaskPlan:
    """The patches of a batch, packed: images follow each other without padding, `cu_seqlens` says where each begins.

    A plan made on a GPU with upper bounds has *slack*: ``keep_ids`` and ``predict_ids`` are longer than the last entry
    of their ``cu_seqlens``, so that their length is known without waiting for the GPU. Ids in the slack are 0 and stand
    for nothing: ops write zeros for these rows and leave them out of losses and gradients. Plans on the CPU have none.

    Attributes:
        keep_ids: ``[N_keep]`` int32, ids of the patches the encoder sees; row-major in the image's own grid, ascending
            within each image.
        keep_cu_seqlens: ``[B+1]`` int32; image b owns ``keep_ids[keep_cu_seqlens[b]:keep_cu_seqlens[b+1]]``.
        predict_ids: ``[N_predict]`` int32, ids of the patches the decoder predicts, packed likewise.
        predict_cu_seqlens: ``[B+1]`` int32.
        grid_size: ``(H/p, W/p)``.
        patch_size: p, in pixels.
        max_keep: kept patches of the image that keeps most, or an upper bound of it.
        max_predict: predicted patches of the image that has most, or an upper bound of it.
        longest: ``max_keep`` and ``max_predict`` rounded up to steps of 128. A compiled model is bound to the numbers
            that it looks at, and these rarely differ from batch to batch.

    Raises:
        ArgumentError, ArgumentTypeError: an attribute is not as described. The values of tensors on a GPU are not
        looked at.
    """

    keep_ids: Tensor
    keep_cu_seqlens: Tensor
    predict_ids: Tensor
    predict_cu_seqlens: Tensor
    grid_size: tuple[int, int]
    patch_size: int
    max_keep: int
    max_predict: int

    def __post_init__(self) -> None:
        for name in ("keep_ids", "keep_cu_seqlens", "predict_ids", "predict_cu_seqlens"):
            tensor = getattr(self, name)
            _native.check_tensor(f"plan.{name}", tensor, (torch.int32,))
            if tensor.ndim != 1 or not tensor.is_contiguous():
                raise ArgumentError(f"plan.{name}: got shape {tuple(tensor.shape)}, accepted is a contiguous vector")
            if tensor.device != self.keep_ids.device:
                raise ArgumentError(
                    f"plan.{name}: is on {tensor.device}, but plan.keep_ids is on {self.keep_ids.device}"
                )
        if not 1 <= self.keep_cu_seqlens.shape[0] == self.predict_cu_seqlens.shape[0]:
            raise ArgumentError(
                f"plan.predict_cu_seqlens: has {self.predict_cu_seqlens.shape[0]} entries and plan.keep_cu_seqlens "
                f"{self.keep_cu_seqlens.shape[0]}; both need batch + 1"
            )
        if not torch.compiler.is_compiling():  # there, sizes are symbols
            self._check_sizes()
        object.__setattr__(self, "longest", (_step(self.max_keep), _step(self.max_predict)))

    def _check_sizes(self) -> None:
        _grid_size("plan.grid_size", self.grid_size)
        _integer("plan.patch_size", self.patch_size, 1, _native.MAX_PATCH_SIZE + 1)
        for which in ("keep", "predict"):
            bound = _integer(f"plan.max_{which}", getattr(self, f"max_{which}"), 0, 2**31)
            total = getattr(self, f"{which}_ids").shape[0]
            if total > self.batch_size * bound:
                raise ArgumentError(
                    f"plan.max_{which}: got {bound}, but plan.{which}_ids holds {total} ids for "
                    f"{self.batch_size} images"
                )
            cu_seqlens = getattr(self, f"{which}_cu_seqlens")
            if type(cu_seqlens) is Tensor and cu_seqlens.device.type == "cpu":  # not a compiler's stand-in
                counts = np.diff(cu_seqlens.numpy())
                # cu_seqlens that fall are the ops' to name
                if counts.min(initial=0) >= 0 and counts.max(initial=0) > bound:
                    raise ArgumentError(f"plan.max_{which}: got {bound}, but an image has {counts.max()} patches")

    @classmethod
    def _unchecked(cls, *values: object) -> MaskPlan:
        """For what was just made to be right: the checks take as long as a small plan."""
        plan = object.__new__(cls)
        plan.__dict__.update(zip(cls.__dataclass_fields__, values, strict=True))
        plan.__dict__["longest"] = _step(plan.max_keep), _step(plan.max_predict)
        return plan

    @property
    def batch_size(self) -> int:
        return self.keep_cu_seqlens.shape[0] - 1

    @property
    def device(self) -> torch.device:
        return self.keep_ids.device

    @property
    def keep_counts(self) -> Tensor:
        """Kept patches of each image, ``[B]`` int32."""
        return self.keep_cu_seqlens.diff()

    @property
    def predict_counts(self) -> Tensor:
        """Predicted patches of each image, ``[B]`` int32."""
        return self.predict_cu_seqlens.diff()

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> MaskPlan:
        """The plan with its tensors on `device`.

        From a GPU to the CPU this waits for the plan, drops its slack, and makes ``max_keep`` and ``max_predict`` what
        the images have.
        """
        if torch.device(device).type == "cpu" and self.device.type != "cpu":
            keep_ids, keep_cu, max_keep = _fetch(self.keep_ids, self.keep_cu_seqlens)
            predict_ids, predict_cu, max_predict = _fetch(self.predict_ids, self.predict_cu_seqlens)
            return MaskPlan(
                keep_ids, keep_cu, predict_ids, predict_cu, self.grid_size, self.patch_size, max_keep, max_predict
            )
        return self._with(lambda t: t.to(device, non_blocking=non_blocking))

    def mark_dynamic(self) -> MaskPlan:
        """The same plan, with its numbers of patches marked as changing from batch to batch for ``torch.compile``.

        Without it a compiled model is compiled again for the second number that it meets, and only then for any.
        """
        import torch._dynamo

        for ids in (self.keep_ids, self.predict_ids):
            torch._dynamo.maybe_mark_dynamic(ids, 0)
        return self

    def pin_memory(self) -> MaskPlan:
        """The plan in page-locked memory (a DataLoader with ``pin_memory=True`` calls this)."""
        return self._with(lambda t: t.pin_memory())

    def _with(self, change: Callable[[Tensor], Tensor]) -> MaskPlan:
        return replace(
            self,
            keep_ids=change(self.keep_ids),
            keep_cu_seqlens=change(self.keep_cu_seqlens),
            predict_ids=change(self.predict_ids),
            predict_cu_seqlens=change(self.predict_cu_seqlens),
        )


def plan_masks(
    inside: Tensor | np.ndarray,  # [B, gh, gw] or [gh, gw] bool
    valid: Tensor | np.ndarray,  # [B, gh, gw] or [gh, gw] bool
    ratio_inside: float = 0.95,
    ratio_outside: float = 0.85,
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
        _integer("seed", seed, 0, 2**64),
        _integer("epoch", epoch, 0, 2**31),
    )
    patch_size = _integer("patch_size", patch_size, 1, _native.MAX_PATCH_SIZE + 1)
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
    patch_size = _integer("patch_size", patch_size, 1, _native.MAX_PATCH_SIZE + 1)
    keep_all = (STRATEGIES.index("contour"), 0.0, 0.0, 0.0, 0, 0)
    return _plan(valid, valid, None, keep_all, (_bound("max_keep", max_keep), 0), patch_size, "auto")


def plan_bounds(
    grid_size: Sequence[int], ratio_inside: float = 0.95, ratio_outside: float = 0.85, predict: float = 1.0
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
    grid_h, grid_w = _grid_size("grid_size", grid_size)
    ratios = _share("ratio_inside", ratio_inside), _share("ratio_outside", ratio_outside)
    return most_patches(grid_h * grid_w, *ratios, _share("predict", predict))


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
    runs = _native.resolve_backend(backend, cpu)
    on_device = device.type == "cuda" and runs == "native" and _native.resolve_backend("auto", device) == "native"
    where = device if on_device else cpu
    arguments = inside.to(where), valid.to(where), _indices(index, inside.shape[0], where), choice
    if runs == "native":
        packed, longest = _native.mask_plan(*arguments, bounds)
    else:
        packed = plan_masks_ref(*arguments)
        longest = _longest(packed[1].numpy()), _longest(packed[3].numpy())
        _native.check_bounds(longest, bounds)
    plan = MaskPlan._unchecked(*packed, tuple(inside.shape[1:]), patch_size, *longest)
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
        raise ArgumentError(f"{name}: got dtype {_native.dtype_names([value.dtype])}, accepted is bool")
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


def _integer(name: str, value: object, low: int, above: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ArgumentTypeError(f"{name}: got {type(value).__name__}, accepted is an integer")
    if not low <= value < above:
        raise ArgumentError(f"{name}: got {value}, accepted is {low} <= {name} < {above}")
    return int(value)


def _bound(name: str, value: object) -> int | None:
    return None if value is None else _integer(name, value, 0, 2**31)


def _grid_size(name: str, value: object) -> tuple[int, int]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ArgumentTypeError(f"{name}: got {type(value).__name__}, accepted are two integers (gh, gw)")
    if len(value) != 2:
        raise ArgumentError(f"{name}: got {len(value)} numbers, accepted are two integers (gh, gw)")
    return _integer(f"{name}[0]", value[0], 1, 2**31), _integer(f"{name}[1]", value[1], 1, 2**31)


def _indices(value: object, batch: int, device: torch.device) -> Tensor:
    """Sample indices as a contiguous ``[B]`` int64 tensor on `device`; not waiting for it."""
    if value is None:
        return torch.arange(batch, device=device)
    if not isinstance(value, (Tensor, np.ndarray)):
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise ArgumentTypeError(f"index: got {type(value).__name__}, accepted are integers [B]")
        value = np.array([_integer("index", i, 0, 2**63) for i in value], dtype=np.int64)
    elif isinstance(value, np.ndarray) and value.dtype.kind == "u" and value.size and int(value.max()) >= 2**63:
        raise ArgumentError(f"index: got {int(value.max())}, accepted is 0 <= index < {2**63}")
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise ArgumentError(f"index: got dtype {value.dtype}, accepted are integers")
        value = torch.from_numpy(np.ascontiguousarray(value, dtype=np.int64))
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ArgumentError(f"index: got dtype {_native.dtype_names([value.dtype])}, accepted are integers")
    if value.shape != (batch,):
        raise ArgumentError(f"index: got shape {tuple(value.shape)}, accepted is [B] = [{batch}]")
    if value.device.type != "cuda" or device.type != "cuda":
        value = value.to("cpu", torch.int64)
        if batch and int(value.min()) < 0:
            raise ArgumentError(f"index: got {int(value.min())}, accepted is 0 <= index < {2**63}")
        if device.type == "cuda" and value.is_pinned():
            value = value.clone()  # pageable memory is copied before .to returns; the caller may reuse its own
    return value.to(device, torch.int64, non_blocking=True).contiguous()


# --- packed sequences -------------------------------------------------------------------------------------------------
def _longest(cu_seqlens: np.ndarray) -> int:
    """Length of the longest sequence."""
    return int(np.diff(cu_seqlens).max(initial=0))


def _fetch(ids: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, int]:
    """Ids without slack, cu_seqlens and longest sequence, on the CPU."""
    cu_seqlens = cu_seqlens.cpu()
    return ids[: int(cu_seqlens[-1])].cpu(), cu_seqlens, _longest(cu_seqlens.numpy())


def _step(count: int) -> int:
    return -(-count // 128) * 128
