"""Where a run's curves go besides its own log: TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..errors import MissingDependencyError
from ..extras import install
from .config import TrainingConfig

WITHHELD = {
    "console": "off",
    "x_disable_meta": True,  # command line, program, user, host, Python, hardware
    "x_save_requirements": False,
    "host": "",
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
}


def check_trackers(config: TrainingConfig) -> None:
    """Raise a MissingDependencyError, before any work, if the settings ask for one that is not installed."""
    if config.wandb:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(f"wandb is not installed: {install('wandb')}") from error


def start_trackers(accelerator, config: TrainingConfig, out: Path, step: int) -> None:
    """Start what the settings ask for; a run that goes on at ``step`` goes on in the same curves.

    Raises:
        MissingDependencyError: as of :func:`check_trackers`.
    """
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    check_trackers(config)
    trackers = []
    if config.tensorboard:
        trackers.append(TensorBoardTracker("tensorboard", str(out), purge_step=step + 1))
    if config.wandb:
        run = hashlib.sha256(os.fsencode(out.absolute())).hexdigest()[:16]
        options = {"dir": str(out), "name": out.name, "id": run, "resume": "allow", "settings": wandb_settings()}
        trackers.append(WandBTracker(config.wandb, **options))
    accelerator.log_with = trackers
    accelerator.init_trackers("", config=None)


def wandb_settings():
    """What W&B is to keep to itself: it gets curves, and the run's name.

    By itself it would send what the terminal shows, the command line, paths, user, host and packages, and so names of
    files and folders. Whatever the environment sets (``WANDB_CONSOLE=auto``, ``WANDB_X_DISABLE_META=false``) is left to
    it.
    """
    import wandb

    known = type(wandb.Settings()).model_fields
    wanted = {name: value for name, value in WITHHELD.items() if name in known}
    return wandb.Settings(
        **{name: value for name, value in wanted.items() if f"WANDB_{name.upper()}" not in os.environ}
    )
