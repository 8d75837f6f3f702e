"""Where a run's curves go besides its own log: TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..errors import MissingDependencyError
from .config import TrainingConfig


def start_trackers(accelerator, config: TrainingConfig, out: Path, step: int) -> None:
    """Start what the settings ask for; a run that goes on at ``step`` goes on in the same curves.

    Raises:
        MissingDependencyError: the extra ``wandb`` is not installed.
    """
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    trackers = []
    if config.tensorboard:
        trackers.append(TensorBoardTracker("tensorboard", str(out), purge_step=step + 1))
    if config.wandb:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError("wandb is not installed: pip install 'hdxray-fast[wandb]'") from error
        run = hashlib.sha256(os.fsencode(out.absolute())).hexdigest()[:16]
        options = {"dir": str(out), "name": out.name, "id": run, "resume": "allow"}
        trackers.append(WandBTracker(config.wandb, **options))
    accelerator.log_with = trackers
    accelerator.init_trackers("", config=None)
