"""Which patches an image's encoder sees and which ones its decoder must predict: grids and ratios in, a `MaskPlan` out.

The random key of a patch is one word of Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), a pure function of (seed, epoch, sample index, patch id): the same on any machine, with any number of workers
or ranks, whatever else is in the batch, and after a resume, with no generator state to save.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import _native
from .errors import ArgumentError, ArgumentTypeError

STRATEGIES = ("contour", "random", "rectangle", "block")  # positions are the codes of csrc/mask_plan.h
BLOCK_EDGE = 4  # patches; on a grid smaller than that, the grid's shorter side


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class MaskPlan:
    """The patches of a batch, packed: images follow each other without padding, `cu_seqlens` says where each begins.

    Attributes:
        keep_ids: ``[N_keep]`` int32, ids of the patches the encoder sees; row-major in the image's own grid, ascending
            within each image.
        keep_cu_seqlens: ``[B+1]`` int32; image b owns ``keep_ids[keep_cu_seqlens[b]:keep_cu_seqlens[b+1]]``.
        predict_ids: ``[N_predict]`` int32, ids of the patches the decoder predicts, packed likewise.
        predict_cu_seqlens: ``[B+1]`` int32.
        grid_size: ``(H/p, W/p)``.
        patch_size: p, in pixels.
        max_keep: kept patches of the image that keeps most.
        max_predict: predicted patches of the image that has most.
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

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MaskPlan:
        """The plan with its tensors on `device`."""
        return self._with(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MaskPlan:
        """The plan in page-locked memory (a DataLoader with ``pin_memory=True`` calls this)."""
        return self._with(lambda t: t.pin_memory())

    def _with(self, change) -> MaskPlan:
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
) -> MaskPlan:
    """Choose the kept and the predicted patches of each image.

    The valid patches fall into strata; in each, exactly ``floor(ratio * n + 0.5)`` of the n patches are masked (round
    half up, in float64) and those with the smallest (key, id) are kept. Of the m masked ones, the next ``floor(predict
    * m + 0.5)`` are predicted. An image with any valid patch keeps at least one (the one with the smallest key, if
    rounding leaves none), and with any masked patch predicts at least one if ``predict > 0``. An image without valid
    patches has none of either.

    Args:
        inside: patches inside the chest contour, bool ``[B, gh, gw]`` (or ``[gh, gw]`` for a batch of one).
        valid: patches that hold any of the radiograph; the others (padding) are neither kept nor predicted. Same shape.
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
            plan depends on its own index only, not on its place in the batch.
        patch_size: p, in pixels; kept in the plan for the ops that read pixels.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; all give the same ids.

    Returns:
        A `MaskPlan` on the device of `inside` (the plan is made on the CPU).

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described; the message names it.
        BackendError: ``backend="native"`` without the native core.
    """
    inside, valid = _grid("inside", inside), _grid("valid", valid)
    if inside.shape != valid.shape:
        raise ArgumentError(
            f"valid: got shape {tuple(valid.shape)}, but inside has {tuple(inside.shape)}; they must agree"
        )
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
    index = _indices(index, inside.shape[0])
    run = _native.mask_plan if _native.resolve_backend(backend, torch.device("cpu")) == "native" else plan_masks_ref
    keep_ids, keep_cu, predict_ids, predict_cu = run(inside.cpu(), valid.cpu(), index, choice)
    plan = MaskPlan(
        keep_ids,
        keep_cu,
        predict_ids,
        predict_cu,
        tuple(inside.shape[1:]),
        patch_size,
        _longest(keep_cu),
        _longest(predict_cu),
    )
    return plan if inside.device.type == "cpu" else plan.to(inside.device)


def plan_all(valid: Tensor | np.ndarray, patch_size: int = 16) -> MaskPlan:
    """The plan that keeps every valid patch and predicts none: the encoder's dense path.

    Args:
        valid: bool ``[B, gh, gw]`` or ``[gh, gw]``.
        patch_size: p, in pixels.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described.
    """
    valid = _grid("valid", valid)
    patch_size = _integer("patch_size", patch_size, 1, _native.MAX_PATCH_SIZE + 1)
    flat = valid.flatten(1)  # [B, n] bool
    keep_cu = torch.zeros(flat.shape[0] + 1, dtype=torch.int32, device=valid.device)
    keep_cu[1:] = flat.sum(1).cumsum(0)
    keep_ids = flat.nonzero()[:, 1].to(torch.int32)
    none = torch.empty(0, dtype=torch.int32, device=valid.device)
    return MaskPlan(
        keep_ids, keep_cu, none, torch.zeros_like(keep_cu), tuple(valid.shape[1:]), patch_size, _longest(keep_cu), 0
    )


# --- reference --------------------------------------------------------------------------------------------------------
def philox_ref(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox-4x32-10 of counters ``[N, 4]`` (any unsigned dtype, 32 bits used) under one key; ``[N, 4]`` uint32."""
    low = np.uint64(0xFFFFFFFF)
    x0, x1, x2, x3 = (counter[:, i].astype(np.uint64) & low for i in range(4))
    k0, k1 = key
    for _ in range(10):
        a, b = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = (
            (b >> np.uint64(32)) ^ x1 ^ np.uint64(k0),
            b & low,
            (a >> np.uint64(32)) ^ x3 ^ np.uint64(k1),
            a & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=1).astype(np.uint32)


def patch_keys_ref(n: int, seed: int, epoch: int, index: int) -> np.ndarray:
    """The keys of patches (or blocks) 0..n-1, ``[n]`` uint32: word ``id % 4`` at counter (id // 4, epoch, index)."""
    counter = np.zeros(((n + 3) // 4, 4), np.uint64)
    counter[:, 0] = np.arange(len(counter))
    counter[:, 1:] = epoch, index & 0xFFFFFFFF, index >> 32
    return philox_ref(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:n]


def _rectangle(gh: int, gw: int) -> np.ndarray:
    box = np.zeros((gh, gw), bool)
    box[int(0.25 * gh) + 1 : int(0.75 * gh) + 1, int(0.125 * gw) + 1 : int(0.75 * gw) + 1] = True
    return box


def _round_half_up(share: float, n: int) -> int:
    return min(max(math.floor(share * n + 0.5), 0), n)


def _plan_image_ref(inside: np.ndarray, valid: np.ndarray, index: int, choice: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Kept and predicted ids of one image, ascending."""
    code, ratio_inside, ratio_outside, predict, seed, epoch = choice
    strategy, (gh, gw) = STRATEGIES[code], inside.shape
    if strategy == "block":
        edge = min(BLOCK_EDGE, gh, gw)
        rows, cols = np.arange(gh) // edge, np.arange(gw) // edge
        across = -(-gw // edge)
        blocks = patch_keys_ref(-(-gh // edge) * across, seed, epoch | 0x80000000, index)
        keys = blocks[rows[:, None] * across + cols[None, :]].reshape(-1)
    else:
        keys = patch_keys_ref(gh * gw, seed, epoch, index)
    if strategy == "rectangle":
        inside = _rectangle(gh, gw)
    inside, valid = inside.reshape(-1), valid.reshape(-1)
    order = np.argsort(keys, kind="stable")  # by (key, id)
    strata = [order[(inside & valid)[order]], order[(~inside & valid)[order]]]
    masked = [_round_half_up(ratio_inside, len(strata[0])), _round_half_up(ratio_outside, len(strata[1]))]
    if strategy == "random":
        strata, masked = [order[valid[order]]], [sum(masked)]
    keep = [len(s) - m for s, m in zip(strata, masked, strict=True)]
    if not any(keep) and valid.any():
        first = order[valid[order]][0]
        keep = [int(first in s) for s in strata]
    hidden = [s[k:] for s, k in zip(strata, keep, strict=True)]
    share = [_round_half_up(predict, len(h)) for h in hidden]
    if predict > 0 and not any(share) and any(map(len, hidden)):
        first = order[np.isin(order, np.concatenate(hidden))][0]
        share = [int(first in h) for h in hidden]
    kept = np.concatenate([s[:k] for s, k in zip(strata, keep, strict=True)])
    predicted = np.concatenate([h[:n] for h, n in zip(hidden, share, strict=True)])
    return np.sort(kept), np.sort(predicted)


def plan_masks_ref(
    inside: Tensor, valid: Tensor, index: Tensor, choice: tuple
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_native.mask_plan` in NumPy, by a full sort: the rules in their plainest form, id for id the same.

    Args:
        inside: ``[B, gh, gw]`` bool. valid: likewise. index: ``[B]`` int64.
        choice: position in `STRATEGIES`, ratio_inside, ratio_outside, predict, seed, epoch.

    Returns:
        keep_ids, keep_cu_seqlens, predict_ids, predict_cu_seqlens, int32.
    """
    plans = [
        _plan_image_ref(i, v, int(n), choice)
        for i, v, n in zip(inside.numpy(), valid.numpy(), index.tolist(), strict=True)
    ]
    packed = []
    for part in zip(*plans, strict=True) if plans else ((), ()):
        ids = np.concatenate([np.empty(0, np.int64), *part])
        cu = np.cumsum([0, *map(len, part)])
        packed += [torch.from_numpy(ids.astype(np.int32)), torch.from_numpy(cu.astype(np.int32))]
    return tuple(packed)


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


def _indices(value: object, batch: int) -> Tensor:
    """Sample indices as a contiguous ``[B]`` int64 tensor on the CPU."""
    if value is None:
        return torch.arange(batch)
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
    value = value.to("cpu", torch.int64).contiguous()
    if batch and int(value.min()) < 0:
        raise ArgumentError(f"index: got {int(value.min())}, accepted is 0 <= index < {2**63}")
    return value


def _longest(cu_seqlens: Tensor) -> int:
    """Length of the longest sequence."""
    return int(cu_seqlens.diff().max()) if cu_seqlens.shape[0] > 1 else 0
