"""What a fine-tuning did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class FinetuneResult:
    """What a run did.

    Attributes:
        out: its folder, with ``metrics.json``, ``predictions.csv``, ``curves.png``, ``errors.png`` and ``model/``.
        report: test metrics, see :func:`.evaluate_predictions`; empty if it was stopped early.
        train_images: it was trained on.
        best: step and validation score of the model that was chosen.
        left_out: files that could not be read.
        fraction: of the training patients: how many were asked for, taken, and added for which class.
        finished: all steps were run (False after SIGTERM).
    """

    out: Path
    report: dict = field(default_factory=dict)
    train_images: int = 0
    best: dict = field(default_factory=dict)
    left_out: int = 0
    finished: bool = False
    fraction: dict = field(default_factory=dict)
