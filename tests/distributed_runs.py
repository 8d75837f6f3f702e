"""What each process of the distributed tests runs: a list of pre-training runs, one after the other.

Called as ``python distributed_runs.py RUNS.json``, a list of ``{"config": ..., "poison": step or null}``, or of
``{"finetune": ...}``. Each run's losses and error go to ``<out>/result_<rank>.json``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from hdxray_fast.errors import HDXrayError
from hdxray_fast.pretrain import PretrainTask, run_pretraining
from hdxray_fast.pretrain_config import PretrainConfig

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


def main() -> int:
    failed = False
    for run in json.loads(Path(sys.argv[1]).read_text()):
        if "finetune" in run:
            from hdxray_fast.classify import run_finetuning
            from hdxray_fast.classify_config import FinetuneConfig

            run_finetuning(FinetuneConfig(**run["finetune"]), progress=False)
            continue
        config = PretrainConfig(**run["config"])
        if run.get("poison"):
            poison(run["poison"])
        result = {}
        try:
            done = run_pretraining(config, progress=False)
            result = {"losses": done.losses, "finished": done.finished, "baseline": done.baseline}
        except HDXrayError as error:
            result = {"error": type(error).__name__, "message": str(error)}
            failed = True
        (Path(config.out) / f"result_{RANK}.json").write_text(json.dumps(result))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
