"""Training a report model: studies in, the model that writes best out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..data.prepared.cache import refuse_foreign_cache
from ..data.seen import DRAWN_FILE, Seen
from ..data.seen_key import run_key
from ..errors import ConfigError
from ..training.loop import Training
from ..training.processes import prepared_by_main
from ..training.run_folder import as_begun
from ..training.starting import with_start
from ..weights.shipped import PRETRAINED
from .config import ReportConfig
from .own_split import read_of_run
from .task import ReportTask


@dataclass
class ReportResult:
    """What a run did.

    Attributes:
        out: its folder; the best model is in ``model`` below it.
        losses: loss of each step this process ran.
        start: steps that lay behind when it began.
        scores: of each validation this process did, with its step.
        best: the best score, NaN without validation.
        best_step: when that was.
        seconds_per_step: median over the steps this process ran.
        notes: a sentence for everything that was left out or cut, with its count.
        finished: all steps were run (False after SIGTERM).
    """

    out: Path
    losses: list[float] = field(default_factory=list, repr=False)
    start: int = 0
    scores: list[dict] = field(default_factory=list)
    best: float = math.nan
    best_step: int = 0
    seconds_per_step: float = math.nan
    notes: list[str] = field(default_factory=list)
    finished: bool = False


def run_report_training(
    config: ReportConfig, *, progress: bool = True, on_step: Callable[[dict], None] | None = None
) -> ReportResult:
    """Train as ``config`` says.

    Writes under ``config.out`` what :mod:`.training.loop` lists, ``unreadable.csv``, ``splits.safetensors`` (where a
    resumed run finds its splits), ``validation.csv`` (the last validation: generated beside reference), and ``model/``:
    the best model so far, for :func:`hdxray_fast.reports.saving.load_report_model`.

    Raises:
        ConfigError: settings that contradict each other, the data, or the run found in ``config.out``.
        TrainingError: no readable radiograph, a tokenizer for another language, or a loss that is not finite.
        CheckpointError: weights, tokenizer or checkpoints cannot be read.
        MissingDependencyError: an optional package is missing.
    """
    config = as_begun(with_start(config, "encoder", PRETRAINED))
    table, begun = prepared_by_main(config, lambda: read_of_run(config))
    task = ReportTask(config, table)
    training = Training(task.config, task, progress=progress, on_step=on_step)
    if training.sharded:
        raise ConfigError("shard: report models are not sharded; every process holds the whole model, leave it out")
    refuse_foreign_cache(task.cache, task.canvas_size, config.contour)
    with training.claimed():
        if training.is_main:
            task.key = run_key(training.out)
            if not begun:
                Seen.of(table, key=task.key).save(training.out / DRAWN_FILE)
        task.read_images(training)
        done = training.run()
    return ReportResult(
        out=training.out,
        losses=done.losses,
        start=done.start,
        scores=task.scores,
        best=task.best,
        best_step=task.best_step,
        seconds_per_step=done.seconds_per_step,
        notes=task.notes,
        finished=done.finished,
    )
