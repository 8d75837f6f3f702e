"""What of a run is saved and restored: all that saving and restoring know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from .config import TrainingConfig
from .curves import Curves
from .optimizer import AveragedWeights
from .run_folder import RunFolder
from .task import Task


class Kept(Protocol):
    """A run, which is a :class:`hdxray_fast.training.loop.Training`."""

    config: TrainingConfig
    task: Task
    accelerator: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedWeights | None
    step: int
    images_per_step: int
    out: Path
    checkpoints: Path
    folder: RunFolder
    curves: Curves

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""

    def print(self, text: str) -> None:
        """Print once, whatever the number of processes."""
