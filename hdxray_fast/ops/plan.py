"""What a mask plan is: the kept and the predicted patches of a batch, packed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError

MAX_PATCH_SIZE = 256  # csrc/common/patches.h holds the same limits


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class MaskPlan:
    """The patches of a batch, packed: images follow each other without padding, `cu_seqlens` says where each begins.

    A plan made on a GPU with upper bounds, or rounded up (:meth:`rounded_up`), has *slack*: ``keep_ids`` and
    ``predict_ids`` are longer than the last entry of their ``cu_seqlens``, so that their length is known without
    waiting for the GPU, or is one of few. Ids in the slack stand for nothing, and nobody looks at them: ops write zeros
    for these rows and leave them out of losses and gradients.

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
        equal_counts: whether all images are known to keep one number of patches without slack, and whether they are
            known to predict one number as well. It is found out where the tensors are on the CPU and goes with them to
            a GPU; for a plan made on a GPU it is ``(False, False)``, because nobody waits there to see.

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
            check_tensor(f"plan.{name}", tensor, (torch.int32,))
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
        object.__setattr__(self, "equal_counts", self._equal_counts())

    def _check_sizes(self) -> None:
        checked_grid_size("plan.grid_size", self.grid_size)
        checked_integer("plan.patch_size", self.patch_size, 1, MAX_PATCH_SIZE + 1)
        for which in ("keep", "predict"):
            bound = checked_integer(f"plan.max_{which}", getattr(self, f"max_{which}"), 0, 2**31)
            total = getattr(self, f"{which}_ids").shape[0]
            if total > self.batch_size * bound:
                raise ArgumentError(
                    f"plan.max_{which}: got {bound}, but plan.{which}_ids holds {total} ids for "
                    f"{self.batch_size} images"
                )
            cu_seqlens = getattr(self, f"{which}_cu_seqlens")
            if (values := host_values(cu_seqlens)) is not None:
                counts = np.diff(values)
                # cu_seqlens that fall are the ops' to name
                if counts.min(initial=0) >= 0 and counts.max(initial=0) > bound:
                    raise ArgumentError(f"plan.max_{which}: got {bound}, but an image has {counts.max()} patches")

    @classmethod
    def unchecked(cls, *values: object) -> MaskPlan:
        """For what was just made to be right: the checks take as long as a small plan."""
        plan = object.__new__(cls)
        plan.__dict__.update(zip(cls.__dataclass_fields__, values, strict=True))
        plan.__dict__["longest"] = _step(plan.max_keep), _step(plan.max_predict)
        plan.__dict__["equal_counts"] = plan._equal_counts()
        return plan

    def _equal_counts(self) -> tuple[bool, bool]:
        if torch.compiler.is_compiling():  # there, tensors have no values
            return False, False
        keep = _is_full(self.keep_ids, self.keep_cu_seqlens, self.max_keep)
        return keep, keep and _is_full(self.predict_ids, self.predict_cu_seqlens, self.max_predict)

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

    def keep_grid(self) -> Tensor:
        """Which patches of each image are kept, ``[B, gh, gw]`` bool."""
        height, width = self.grid_size
        real, image = rows_with_patch(self, "keep")
        cells = torch.where(real, image * (height * width) + self.keep_ids, self.batch_size * height * width)
        grid = torch.zeros(self.batch_size * height * width + 1, dtype=torch.bool, device=self.device)
        return grid.index_fill(0, cells, True)[:-1].view(self.batch_size, height, width)  # the last one was for slack

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
            keep_ids, keep_cu, max_keep = fetch_packed(self.keep_ids, self.keep_cu_seqlens)
            predict_ids, predict_cu, max_predict = fetch_packed(self.predict_ids, self.predict_cu_seqlens)
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

    def rounded_up(self, slack: float = 0.06, least: tuple[int, int] = (0, 0)) -> MaskPlan:
        """The plan of a CPU with totals and bounds rounded up to few sizes; what is added is slack.

        Batches of one size can share what is bound to sizes, such as a CUDA graph. The sizes are ``(1 + slack)^k``,
        so that at most this share is added.

        Args:
            slack: largest share that is added.
            least: make room for so many kept and predicted patches at least, rounded up likewise; :attr:`longest` is
                then what that many spread evenly need, or more.
        """
        sizes, bounds = [], []
        for ids, longest, room in zip((self.keep_ids, self.predict_ids), self.longest, least, strict=True):
            sizes.append(next_size(max(ids.shape[0], room), slack))
            bounds.append(max(longest, _step(-(-sizes[-1] // max(self.batch_size, 1)))))
        keep_ids, predict_ids = (
            torch.nn.functional.pad(ids, (0, size - ids.shape[0]))
            for ids, size in zip((self.keep_ids, self.predict_ids), sizes, strict=True)
        )
        return replace(self, keep_ids=keep_ids, predict_ids=predict_ids, max_keep=bounds[0], max_predict=bounds[1])

    def pin_memory(self) -> MaskPlan:
        """The plan in page-locked memory (a DataLoader with ``pin_memory=True`` calls this)."""
        return self._with(lambda t: t.pin_memory())

    def _with(self, change: Callable[[Tensor], Tensor]) -> MaskPlan:
        """The same plan in other memory."""
        plan = replace(
            self,
            keep_ids=change(self.keep_ids),
            keep_cu_seqlens=change(self.keep_cu_seqlens),
            predict_ids=change(self.predict_ids),
            predict_cu_seqlens=change(self.predict_cu_seqlens),
        )
        object.__setattr__(plan, "equal_counts", self.equal_counts)
        return plan


def of_one_size(plans: Sequence[MaskPlan]) -> list[MaskPlan]:
    """Plans of a CPU in one size, the next of few: what is recorded for a size is good for all of them.

    As :meth:`MaskPlan.rounded_up`, so that little is added where the plans have about equally many patches.
    """
    most = max(plan.keep_ids.shape[0] for plan in plans), max(plan.predict_ids.shape[0] for plan in plans)
    longest = [max(plan.longest[which] for plan in plans) for which in (0, 1)]
    rounded = [plan.rounded_up(least=most) for plan in plans]
    bounds = [max(longest[which], *(plan.longest[which] for plan in rounded)) for which in (0, 1)]
    pinned = plans[0].keep_ids.is_pinned()
    alike = [replace(plan, max_keep=bounds[0], max_predict=bounds[1]) for plan in rounded]
    return [plan.pin_memory() if pinned else plan for plan in alike]


# --- arguments --------------------------------------------------------------------------------------------------------
def dtype_names(dtypes) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def check_tensor(name: str, value: Any, dtypes, device: torch.device | None = None, advice: str = "") -> Tensor:
    """`value`, if it is a tensor of one of `dtypes` on `device`; `advice` says what to do with those of others."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name}: got {type(value).__name__}, accepted is a torch.Tensor")
    if value.dtype not in dtypes:
        got = dtype_names([value.dtype])
        raise ArgumentError(f"{name}: got dtype {got}, accepted are {dtype_names(dtypes)}{advice}")
    if device is not None and value.device != device:
        raise ArgumentError(f"{name}: got a tensor on {value.device}, accepted is {device}, where the images are")
    return value


def as_plain(tensor: Tensor) -> Tensor:
    """The tensor without a subclass that only carries metadata, as MONAI's ``MetaTensor`` does.

    Such a class would follow the data into results that its metadata do not describe.
    """
    kind = type(tensor)
    carries_data = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
    return tensor if kind in (Tensor, torch.nn.Parameter) or carries_data else tensor.as_subclass(Tensor)


def checked_integer(name: str, value: object, low: int, above: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ArgumentTypeError(f"{name}: got {type(value).__name__}, accepted is an integer")
    if not low <= value < above:
        raise ArgumentError(f"{name}: got {value}, accepted is {low} <= {name} < {above}")
    return int(value)


def checked_grid_size(name: str, value: object) -> tuple[int, int]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ArgumentTypeError(f"{name}: got {type(value).__name__}, accepted are two integers (gh, gw)")
    if len(value) != 2:
        raise ArgumentError(f"{name}: got {len(value)} numbers, accepted are two integers (gh, gw)")
    return checked_integer(f"{name}[0]", value[0], 1, 2**31), checked_integer(f"{name}[1]", value[1], 1, 2**31)


# --- packed sequences -------------------------------------------------------------------------------------------------
def host_values(tensor: Tensor) -> np.ndarray | None:
    """The values of a tensor of the CPU; ``None`` for a GPU's, and for the stand-ins of compilers and transforms."""
    if type(tensor) is not Tensor or tensor.device.type != "cpu":
        return None
    try:
        return tensor.numpy()
    except RuntimeError:  # torch.func wraps tensors that are made within it
        return None


def longest_of(cu_seqlens: np.ndarray) -> int:
    """Length of the longest sequence."""
    return int(np.diff(cu_seqlens).max(initial=0))


def fetch_packed(ids: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, int]:
    """Ids without slack, cu_seqlens and longest sequence, on the CPU."""
    cu_seqlens = cu_seqlens.cpu()
    return ids[: int(cu_seqlens[-1])].cpu(), cu_seqlens, longest_of(cu_seqlens.numpy())


def next_size(count: int, slack: float) -> int:
    """The least of the sizes ``floor((1 + slack)^k)``, k = 0, 1, ..., that holds ``count``; 0 for 0."""
    if count <= 0:
        return 0
    power = max(0, math.floor(math.log(count) / math.log1p(slack)) - 1)
    while (size := math.floor((1 + slack) ** power)) < count:
        power += 1
    return size


def _is_full(ids: Tensor, cu_seqlens: Tensor, longest: int) -> bool:
    """Whether B sequences of at most ``longest`` ids have B times as many together, and no slack behind them."""
    total = ids.shape[0]
    if total == 0 or total != longest * (cu_seqlens.shape[0] - 1):
        return False
    values = host_values(cu_seqlens)  # as many rows may be slack, so the end of the last sequence has to be seen
    return values is not None and int(values[-1]) == total


def _step(count: int) -> int:
    return -(-count // 128) * 128


def rows_with_patch(plan: MaskPlan, which: str) -> tuple[Tensor, Tensor]:
    """Which packed rows have a patch, ``[N]`` bool, and the image of each, ``[N]`` int64; slack has none."""
    keep = which == "keep"
    ids, cu_seqlens = (plan.keep_ids, plan.keep_cu_seqlens) if keep else (plan.predict_ids, plan.predict_cu_seqlens)
    row = torch.arange(ids.shape[0], dtype=torch.int32, device=ids.device)
    image = torch.searchsorted(cu_seqlens[1:], row, right=True)  # [N], the batch size for slack
    n_patches = plan.grid_size[0] * plan.grid_size[1]
    return (image < plan.batch_size) & (ids >= 0) & (ids < n_patches), image
