"""What each process of the distributed tests runs: a list of pre-training runs, one after the other.

Called as ``python distributed_runs.py RUNS.json``, a list of ``{"config": ..., "poison": step or null}``, of
``{"finetune": ...}``, or of ``{"report": ...}``; ``"slow": seconds`` makes the first process's reading take so long,
and the last one's features; ``"late": true`` looks at steps late, as on a GPU; ``"killer": name`` ends whatever process
reads a file of that name; at the steps ``"due": [...]`` the main process' clock says that a checkpoint is, and that of
the step ``"full"`` cannot be written. The losses or the error of the first kind go to ``<out>/result_<rank>.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from tiny_encoders import tiny_of

from hdxray_fast.errors import CheckpointError, HDXrayError
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import PretrainTask, run_pretraining

RANK = int(os.environ["RANK"])


def poison(step: int) -> None:
    """The last process meets a loss that is no number."""
    whole = PretrainTask.loss
    calls = iter(range(1, 1_000_000))

    def loss(self, model, batch):
        value, numbers = whole(self, model, batch)
        last = int(os.environ["WORLD_SIZE"]) - 1
        return (value * float("nan") if next(calls) == step and last == RANK else value), numbers

    PretrainTask.loss = loss


def dawdle(seconds: float) -> None:
    """Longer than the others' patience: in the reading of a file, and in the features of a frozen encoder.

    What else is read, listed or compared before the first step, the main process alone does.
    """
    from hdxray_fast.classify import finetune
    from hdxray_fast.classify import task as classify_task
    from hdxray_fast.data.prepared import worker
    from hdxray_fast.pretrain import task as pretrain_task
    from hdxray_fast.reports import batches, own_split
    from hdxray_fast.reports.features import FeatureStore
    from hdxray_fast.training import run_folder

    def of_main(*arguments, **options):
        raise AssertionError("the main process alone does this")

    for module, name in (
        (pretrain_task, "run_sources"), (finetune, "labels_of"), (finetune, "require_files"),
        (classify_task, "keep_copies_together"), (own_split, "read_studies"), (batches, "keep_copies_together"),
        (run_folder, "refuse_foreign"),
    ):  # fmt: skip
        if RANK:
            setattr(module, name, of_main)

    read, fill = worker.read, FeatureStore.fill
    waits = iter([seconds])

    def slow_read(*arguments):
        if RANK:
            raise AssertionError("files are read by the main process alone")
        time.sleep(next(waits, 0))
        return read(*arguments)

    def slow_fill(*arguments, **options):
        time.sleep(seconds if RANK else 0)
        return fill(*arguments, **options)

    worker.read, FeatureStore.fill = slow_read, slow_fill


def have_killed(name: str) -> None:
    """A file kills its reader: a worker of the main process, or else the process that trains."""
    import killer_files

    from hdxray_fast.data.prepared import cached, pool

    os.environ["KILLER"] = name  # workers have it, too
    pool.prepare_source = cached.prepare_source = killer_files.prepare_source


@contextlib.contextmanager
def watched_checkpoints(due: list[int], full: int):
    """The main process alone reads checkpoints, sees the clock (over at the steps ``due``) and writes (not ``full``).

    Nothing is due on the others' clocks, and they write and read nothing.
    """
    from hdxray_fast.training import restoring, saving

    read, write = restoring.read_checkpoint, saving.write_checkpoint
    asked = iter(range(1, 1_000_000))

    class Clock:
        over = property(lambda self: next(asked) in due if RANK == 0 else False)

        def __init__(self, minutes):
            pass

        def restart(self):
            pass

    def main_reads(*arguments):
        if RANK:
            raise AssertionError("checkpoints are read by the main process alone")
        return read(*arguments)

    def main_writes(folder, *rest):
        if RANK:
            raise AssertionError("checkpoints are written by the main process alone")
        if int(folder.name[-8:]) == full:
            raise CheckpointError(f"{folder}: no room")
        write(folder, *rest)

    before = saving.Clock, write, read
    saving.Clock, saving.write_checkpoint, restoring.read_checkpoint = Clock, main_writes, main_reads
    try:
        yield
    finally:
        saving.Clock, saving.write_checkpoint, restoring.read_checkpoint = before


def look_late(late: bool) -> None:
    """As on GPUs: numbers come a step late, and a step that is not finite is skipped where it is computed."""
    from recorded_graph import RecordedGraphs

    from hdxray_fast.training import loop

    loop.graphs_for = RecordedGraphs if late else lambda device: None


def main() -> int:
    with tiny_of(2):  # as in the process that looks at the results
        return run_all()


def run_all() -> int:
    """An error of ours ends a run, and not those after it; any other ends the process."""
    results = []
    for run in json.loads(Path(sys.argv[1]).read_text()):
        out = Path(next(run[kind] for kind in ("config", "finetune", "report") if kind in run)["out"])
        print(f"--- {out.name}", flush=True)
        try:
            results.append(run_one(run))
        except Exception as error:
            raise RuntimeError(f"{out.name} failed") from error
        (out / f"result_{RANK}.json").write_text(json.dumps(results[-1]))
    return 1 if any("error" in result for result in results) else 0


def run_one(run: dict) -> dict:
    look_late(run.get("late", False))
    if "slow" in run:
        dawdle(run["slow"])
    if "killer" in run:
        have_killed(run["killer"])
    if "report" in run:
        from hdxray_fast.reports.config import ReportConfig
        from hdxray_fast.reports.run import run_report_training

        run_report_training(ReportConfig(**run["report"]), progress=False)
        return {}
    if "finetune" in run:
        from hdxray_fast.classify.config import FinetuneConfig
        from hdxray_fast.classify.finetune import run_finetuning

        run_finetuning(FinetuneConfig(**run["finetune"]), progress=False)
        return {}
    config = PretrainConfig(**run["config"])
    if run.get("poison"):
        poison(run["poison"])
    try:
        with watched_checkpoints(run.get("due", []), run.get("full", 0)):
            done = run_pretraining(config, progress=False)
        return {"losses": done.losses, "finished": done.finished, "baseline": done.baseline}
    except HDXrayError as error:
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    sys.exit(main())
