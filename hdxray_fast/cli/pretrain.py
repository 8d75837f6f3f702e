"""The commands ``plan`` and ``pretrain``."""

from __future__ import annotations

import os

from ..terminal import fitted
from ..training.resuming import STOPPED, stopped_early
from .options import add_training, loss_line


def add_commands(commands, parser_class) -> None:
    """Add them to jsonargparse's subcommands."""
    from ..pretrain.config import PretrainConfig
    from ..pretrain.plan_config import PlanConfig

    plan = parser_class(
        examples=["plan --data sets/chest --model vit_base_patch16 --gpus 8", "plan --images 300000 --gpu h100"],
        description="What a pre-training will take, before it is begun.",
    )
    plan.add_argument("--json", action="store_true", help="machine-readable")
    plan.add_class_arguments(PlanConfig)
    commands.add_subcommand("plan", plan)

    pretrain = parser_class(
        examples=[
            "pretrain --data sets/chest --out runs/first --steps 1000",
            "pretrain --config config.yaml --batch-size 16",
        ],
        description="Pre-train a contour-masked auto-encoder.",
    )
    add_training(pretrain, PretrainConfig)
    commands.add_subcommand("pretrain", pretrain)


def run_plan_command(json: bool, **options) -> int:
    from ..pretrain.plan_config import PlanConfig
    from ..pretrain.planning import as_json, describe, plan

    config = PlanConfig(**options).filled_in()
    found = plan(config)
    print(as_json(found) if json else fitted(describe(found, config)))
    return 0


def run_pretrain_command(**options) -> int:
    from ..pretrain.config import PretrainConfig
    from ..pretrain.task import run_pretraining

    config = PretrainConfig(**options)
    result = run_pretraining(config)
    status = 0 if result.finished else STOPPED
    if int(os.environ.get("RANK", "0")):
        return status  # of several processes one speaks
    if result.losses:
        print(loss_line(result))
        print(f"(predicting each patch by its own mean would give {result.baseline:.4f})")
    if result.picture:
        print(f"picture: {result.picture}")
    stopped = stopped_early(result.out, config.resume, config.force)
    print(f"model: {result.out / 'model'}" if result.finished else stopped)
    return status


COMMANDS = {"plan": run_plan_command, "pretrain": run_pretrain_command}
