"""What is trained: the one object that a run of :class:`hdxray_fast.training.loop.Training` is given."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..ops.plan import MaskPlan, of_one_size
from .config import TrainingConfig
from .data_record import DataRecord
from .optimizer import parameter_groups


class Run(Protocol):
    """What a task is told of its run, which is a :class:`hdxray_fast.training.loop.Training`."""

    config: TrainingConfig
    model: nn.Module
    accelerator: Any
    out: Path
    sharded: bool

    @property
    def numbers(self) -> dict[str, int | float]:
        """What :meth:`Task.loss` had logged in the last step, over all processes; waits for it."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""

    def loader(self, dataset: Any, start: int, *args: Any, **options: Any) -> Iterable[dict]:
        """Batches of this process from step ``start`` on."""

    def averaged(self) -> AbstractContextManager[nn.Module]:
        """The model for validation."""

    def print(self, text: str) -> None:
        """Print once, whatever the number of processes."""

    def sum(self, values: dict[str, int | float | Tensor]) -> dict[str, int | float]:
        """Sums over all processes, which must all call this with the same names."""


class Task:
    """What is trained. Subclasses override what they need; only :meth:`build`, :meth:`loader` and :meth:`loss` must be.

    A task holds nothing that changes from step to step except what :meth:`state` returns: whatever is drawn at random
    is drawn by counters (see :class:`.StepSampler` and :mod:`hdxray_fast.data.draws`), or by torch's generator within
    :meth:`loss`, which every step seeds anew on each process. So a resumed run is the run that never stopped; what
    counters of samples draw does not depend on how a step is split into batches and processes either.

    Attributes:
        label: name of the progress bar, and of the command in the mark that the run's folder bears.
        writes: names of files and folders that it writes into that folder itself.
        fingerprint: of the data, filled in before the run begins; a resumed run must have the same.
        data_record: of the data, and of weights that no checkpoint holds, filled in likewise; with it a refusal names
            what differs.
        compiles: whether its model is worth compiling where the settings leave it open.
        captures: whether its steps may be recorded as CUDA graphs: :meth:`loss` then looks at no value on the device,
            takes of a batch its tensors alone, and returns tensors for all numbers that change from step to step.
    """

    label = "train"
    writes: tuple[str, ...] = ()
    compiles = True
    captures = False
    fingerprint = ""
    data_record: DataRecord | None = None

    def build(self) -> nn.Module:
        """The model, on the CPU; torch's generator is seeded before. Called again where a whole copy is needed."""
        raise NotImplementedError

    def groups(self, model: nn.Module, config: TrainingConfig) -> list[dict]:
        """AdamW's parameter groups; ``group["lr_scale"]`` scales the learning rate of a group."""
        return parameter_groups(model, config.weight_decay)

    def peak_lr(self, images: int) -> float:
        """Peak learning rate for so many images per step, where the settings give none."""
        return 5e-4 * math.sqrt(images / 8)

    def loader(self, training: Run, start: int) -> Iterable[dict]:
        """Batches of this process from step ``start`` on, ``grad_accum`` a step; see :meth:`Run.loader`."""
        raise NotImplementedError

    def to_device(self, batch: dict, device: torch.device) -> dict:
        """The batch where the model is; what is no tensor and no plan stays. A place to add what is computed there."""
        moved = {
            k: v.to(device, non_blocking=True) if isinstance(v, (Tensor, MaskPlan)) else v for k, v in batch.items()
        }
        if device.type == "cuda":  # where a model is compiled, unless the settings say otherwise
            for value in moved.values():
                if isinstance(value, MaskPlan):
                    value.mark_dynamic()
        return moved

    def of_one_shape(self, batches: list[dict]) -> list[dict]:
        """The batches of a step, still on the host, in one of few shapes: asked where steps are recorded by shape.

        Those with a ``plan`` get plans of one size.
        """
        plans = [batch["plan"] for batch in batches if isinstance(batch.get("plan"), MaskPlan)]
        if len(plans) < len(batches):
            return batches
        return [{**batch, "plan": plan} for batch, plan in zip(batches, of_one_size(plans), strict=True)]

    def weight(self, batch: dict) -> int | Tensor:
        """Number of things that the loss of ``batch`` is a mean over, such as images, tokens or predicted patches.

        The loss of a step is the mean over all of them, whatever their spread over processes and forward passes.
        """
        return len(next(value for value in batch.values() if isinstance(value, Tensor)))

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict[str, int | float | Tensor]]:
        """Loss (a mean, see :meth:`weight`) and numbers to log: integers are summed over the step, others averaged.

        Args:
            model: to be called as it is, not by its parts: it may be wrapped for several processes.
            batch: from :meth:`to_device`.
        """
        raise NotImplementedError

    def files(self, batch: dict) -> list[str]:
        """Names of the files of a batch, for the error about a loss that is not finite."""
        return []

    def after_step(self, training: Run, step: int, done: bool) -> dict | None:
        """Pictures, validation, the best model so far; every process calls it. Numbers returned are logged.

        ``step`` steps are behind; ``done``: these were all. The checkpoint of the step is saved afterwards.
        """

    def at_save(self, training: Run, step: int) -> None:
        """Pictures, at the pace of the checkpoints; called by every process before that of ``step`` is saved.

        Not before the one of a run that was told to stop.
        """

    def state(self) -> dict:
        """JSON-able values that a resumed run goes on from."""
        return {}

    def load_state(self, state: dict) -> None:
        """Take what :meth:`state` gave."""

    def json_files(self, model: nn.Module) -> dict[str, dict]:
        """Further files of a checkpoint, such as the ``config.json`` that makes it a model to load."""
        return {}
