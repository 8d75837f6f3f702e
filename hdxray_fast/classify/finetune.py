"""Fine-tuning: a labelled manifest and an encoder to a classifier that is chosen on validation and tested once."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..data.prepared.cache import refuse_foreign_cache
from ..data.seen import DRAWN_FILE, Seen
from ..data.seen_key import run_key
from ..errors import ConfigError
from ..files import claim_names
from ..progress import note
from ..ranks import launched, on_main
from ..regular_files import RUN_JSON, read_json
from ..training.data_record import RECORD
from ..training.loop import Training
from ..training.processes import prepared_by_main
from ..training.resuming import ANEW, stopped_early
from ..training.run_folder import RunFolder, as_begun, is_run
from ..training.starting import with_start
from ..weights.shipped import PRETRAINED
from .calibration import describe_temperature
from .config import FinetuneConfig
from .data import without_filtered
from .label_fractions import take_fraction
from .label_settings import LabelSettings
from .labels import describe_labels, labels_of, one_sided, require_files
from .predictions import PAGE_FILE, describe_unreadable
from .result import FinetuneResult
from .table import TABLE_FILES, summary, write_table
from .task import FinetuneTask, build_encoder, canvas_size

# settings of a training in steps, of which a probe has none
OF_STEPS = (
    "steps", "epochs", "lr", "warmup", "ema", "grad_accum", "augment", "mixup", "class_weight", "drop_path",
    "layer_decay", "graph",
)  # fmt: skip


def run_finetuning(
    config: FinetuneConfig, *, progress: bool = True, on_step: Callable[[dict], None] | None = None
) -> list[FinetuneResult]:
    """Fine-tune as ``config`` says: a run for each label fraction and seed.

    Writes under ``config.out`` (each run of several: under ``fraction_<share>/seed_<seed>``) what
    :mod:`.training.loop` lists, ``unreadable.csv``, ``best.safetensors`` (the best model on validation so far),
    and at the end ``model/``, ``metrics.json``, ``predictions.csv``, ``curves.png`` and ``errors.png`` of the test
    split. Several runs are told together in ``table.md``, ``results.json`` and ``fractions.png``.

    Args:
        config: all settings.
        progress: print what is found, and show progress bars.
        on_step: called with each log line's dict.

    Returns:
        A result per run; after SIGTERM, up to the run that was stopped.

    Raises:
        ConfigError: settings that contradict each other, the labels, or the run found in ``config.out``; nothing was
            trained.
        TrainingError: too many images cannot be read, or a loss is not finite.
        CheckpointError: weights or checkpoints cannot be read.
        MissingDependencyError: an optional package is needed.
    """
    runs = _started_alike(config.runs())
    processes = launched()
    if processes > 1 and (len(runs) > 1 or config.is_probe):
        what = "a linear probe is" if config.is_probe else "several label_fractions or seeds are"
        raise ConfigError(f"{what} for one process; under accelerate launch, start each run by itself")
    begun = _begun(config, runs)
    if len(runs) > 1:
        own = any(_is_ours(Path(run.out)) for run in runs)
        claim_names(Path(config.out), "finetune", TABLE_FILES, own)
    results = []
    for number, run in enumerate(runs):
        if progress and len(runs) > 1:
            note(f"run {number + 1} of {len(runs)}: {run.label_fractions[0]:.0%} of the labels, seed {run.seed}")
        results.append(
            _probe(run, Path(config.out), progress)
            if run.is_probe
            else _finetune(run, processes, progress, on_step, begun, runs[1:] if number == 0 and config.force else ())
        )
        if not results[-1].finished:
            break
    if len(runs) > 1 and results[-1].finished:
        write_table(Path(config.out), runs, results)
    return results


def _started_alike(runs: Sequence[FinetuneConfig]) -> list[FinetuneConfig]:
    """The runs with what they start from: all with an untrained encoder where an earlier release began one so."""
    started = [with_start(run, "model", PRETRAINED) for run in runs]
    untrained = next((run.model for run in started if run.weights is None), None)
    return started if untrained is None else [replace(run, weights=None, model=untrained) for run in runs]


def _is_ours(out: Path) -> bool:
    """Whether a run of several is there, of a release that left no mark."""
    from .probe import results_of

    return is_run(out) or results_of(out) is not None


def _begun(config: FinetuneConfig, runs: list[FinetuneConfig]) -> Seen | str | None:
    """The splits that runs found here were begun with, ``"hashed"`` if that was before they were kept; ``None``: new.

    Another release may draw others from the same table, and a run must not be trained on its own test images.
    """
    if not config.goes_on:
        return None
    for run in runs:
        if (kept := Seen.load(Path(run.out) / DRAWN_FILE, needs_key=True)) is not None:
            return kept
    return "hashed" if any((Path(run.out) / RECORD).exists() for run in runs) else None


def _finetune(
    config: FinetuneConfig,
    processes: int,
    progress: bool,
    on_step: Callable[[dict], None] | None,
    begun: Seen | str | None,
    anew: Sequence[FinetuneConfig] = (),
) -> FinetuneResult:
    """One of the runs. Those of ``anew`` lose their results before it begins: what is stopped then goes on with none of
    before."""
    config = as_begun(config)
    out = Path(config.out)
    whole = prepared_by_main(config, lambda: without_filtered(labels_of(config, begun), config.prepared))
    table = take_fraction(whole, config.label_fractions[0], config.seed, config.exact_fractions)
    if config.prepared is None:
        on_main(lambda: require_files(table, config.data, config.images), config.process_timeout)
    if config.img_size is None:
        config = replace(config, img_size=canvas_size(build_encoder(config)))
    config = config.with_steps(table.splits.count("train"), processes)
    task = FinetuneTask(config, table, whole)
    training = Training(config, task, progress=progress, on_step=on_step)
    if config.select != "loss" and len(one_sided(table.split("val"))) == len(table.classes):
        task.notes.append(f"warning: {config.select} is not defined on val, so the loss chooses the model")
    if progress:
        training.print("\n".join([describe_labels(table), *task.notes]))
    if config.prepared is None:
        refuse_foreign_cache(config.cache or out / "cache", config.img_size, config.contour)
    metrics = out / "metrics.json"
    with training.claimed():
        for run in anew:
            RunFolder(run, task.label, task.writes).empty()
        if metrics.exists() and task.best_model.facts:  # it is whole: several in one folder go on with the next
            result = _read_result(out, task.labels_digest)
            training.print(f"{out}: all {config.steps} steps are done; {ANEW}")
            return result
        if training.is_main:
            task.key = run_key(out)
            if begun is None or not (out / DRAWN_FILE).exists():
                Seen.of(whole, key=task.key).save(out / DRAWN_FILE)
        task.use(task.find_images(training))
        if progress and task.copies:
            training.print("\n".join(task.copies))
        done = training.run()
        train_images, unreadable = len(task.datasets["train"]), len(task.set_aside.rows)
        result = FinetuneResult(out, {}, train_images, {}, unreadable, done.finished, table.fraction)
        if done.finished:
            result.report, result.best = task.finish(training)
    return result


def _probe(config: FinetuneConfig, shared_out: Path, progress: bool) -> FinetuneResult:
    """A frozen encoder under a linear head: the probe, on features in ``shared_out`` that all runs share."""
    from .probe import run_probe
    from .probe_config import ProbeConfig

    usual = {field.name: field.default for field in dataclasses.fields(config)}
    without = [name for name in OF_STEPS if getattr(config, name) != usual[name]]
    if without:
        warnings.warn(
            f"tune=head with a linear head is a probe, which takes no steps: {', '.join(without)} have no effect; "
            "give head=attention for a head that is trained in steps",
            stacklevel=2,
        )
    if config.weights is None:
        torch.manual_seed(config.seed)
    encoder = build_encoder(config)
    encoder.contour = config.contour
    shared = {name: getattr(config, name) for name in (
        *(field.name for field in dataclasses.fields(LabelSettings)), "data", "out", "seed", "exact_fractions", "pool",
        "keep", "img_size", "prepared", "workers", "timeout", "max_memory", "bootstraps", "bootstrap_seed",
        "batch_size", "max_bad_share", "precision", "compile", "device", "prevalence", "calibrate",
    )}  # fmt: skip
    features = None if config.weights is None else str(shared_out / "features.parquet")
    probe = run_probe(
        ProbeConfig(
            weights=config.weights or "", label_fraction=config.label_fractions[0], features=features, **shared
        ),
        encoder,
        progress=progress,
    )
    return FinetuneResult(
        probe.out,
        probe.report,
        probe.train_images,
        {"strengths": probe.strengths},
        probe.left_out,
        True,
        probe.fraction,
    )


def _read_result(out: Path, labels_digest: str) -> FinetuneResult:
    """A run that was finished before; a ConfigError if that was with other labels."""
    saved = read_json(out / "metrics.json", RUN_JSON)
    if saved.get("labels_digest", labels_digest) != labels_digest:  # runs of releases before do not tell
        raise ConfigError(
            f"data: these are other images, labels or splits than those that the run in {out} was trained with, which "
            f"is finished; {ANEW}, or choose another folder"
        )
    names = (
        "classes",
        "bootstraps",
        "images",
        "patients",
        "mean",
        "mean_over",
        "decisions",
        "temperature",
        "off_chest",
    )
    report = {name: saved[name] for name in names if name in saved}
    return FinetuneResult(
        out, report, saved["train_images"], saved["chosen_on_validation"], saved["unreadable"], finished=True,
        fraction=saved.get("label_fraction", {}),
    )  # fmt: skip


def describe_finetuning(config: FinetuneConfig, results: list[FinetuneResult]) -> str:
    """What the command prints."""
    from .metrics import format_metrics

    last = results[-1]
    if not last.finished:
        return stopped_early(last.out, config.resume, config.force)
    if len(results) > 1:
        runs = summary(config.runs(), results)
        return f"{runs}\n\ntable, plot and all runs, each with its {PAGE_FILE}, are in {config.out}"
    lines = [format_metrics(last.report)] if last.report else []
    if told := describe_temperature(last.report.get("temperature")):
        lines.append(told)
    if "step" in last.best:
        known = {name: last.best[name] for name in ("auroc", "auprc", "loss") if last.best[name] is not None}
        scores = ", ".join(f"{name} {value:.4f}" for name, value in known.items())
        lines.append(f"chosen on validation: step {last.best['step']}, {scores}")
    if last.left_out:
        lines.append(describe_unreadable(last.left_out, last.out / "unreadable.csv"))
    lines.append(f"metrics, plots and the model are in {last.out}; all on one page: {last.out / PAGE_FILE}")
    return "\n".join(lines)
