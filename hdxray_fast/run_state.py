"""A training run on disk: checkpoints that are whole or absent, and a loss log that never disagrees with them."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import nn

from .checkpoint import save_model
from .errors import CheckpointError
from .files import flush, written_whole

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
EMA_FILE = "ema.safetensors"


def checkpoint_folder(root: Path, step: int) -> Path:
    """``root/step_00000123``."""
    return root / f"step_{step:08d}"


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, ema: nn.Module | None = None
) -> None:
    """Write model, optimizer, averaged weights and ``state`` (JSON-able) under ``folder``.

    All files are written and flushed in a temporary folder beside it, which is then renamed: a reader, or a restart
    after ``kill -9``, finds the whole checkpoint or none.
    """
    from safetensors.torch import save_file

    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_model(model, temporary)
    tensors, scalars = _flatten(optimizer)
    save_file(tensors, temporary / OPTIMIZER_FILE)
    if ema is not None:
        save_file({name: value.contiguous() for name, value in ema.state_dict().items()}, temporary / EMA_FILE)
    (temporary / STATE_FILE).write_text(json.dumps({**state, "optimizer_scalars": scalars}, indent=1))
    for path in temporary.iterdir():
        flush(path)
    shutil.rmtree(folder, ignore_errors=True)  # only a failed step saved twice finds one here
    os.replace(temporary, folder)
    flush(folder.parent)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None = None
) -> dict:
    """Restore what :func:`save_checkpoint` wrote, and return its ``state``.

    Raises:
        CheckpointError: a file is missing, damaged, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads((folder / STATE_FILE).read_text())
        weights = load_file(folder / "model.safetensors")
        tensors = load_file(folder / OPTIMIZER_FILE)
        averaged = load_file(folder / EMA_FILE) if ema is not None else None
        model.load_state_dict(weights)
        _restore(optimizer, tensors, state.pop("optimizer_scalars"))
        if ema is not None:
            ema.load_state_dict(averaged)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot resume from this checkpoint ({error})") from error
    return state


def resume_latest(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None = None
) -> dict | None:
    """Restore the newest whole checkpoint under ``root``; an older one stands in for a damaged one, with a warning.

    Returns:
        The checkpoint's state, or ``None`` where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    folders = sorted(root.glob("step_*"), reverse=True)
    failures = []
    for folder in folders:
        try:
            return load_checkpoint(folder, model, optimizer, ema)
        except CheckpointError as error:
            failures.append(str(error))
            warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
    if failures:
        raise CheckpointError("no checkpoint of this run can be read: " + "; ".join(failures))
    return None


def prune_checkpoints(root: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what an interrupted save left."""
    for folder in sorted(root.glob("step_*"))[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in root.glob(".step_*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


def truncate_log(path: Path, step: int) -> None:
    """Drop the lines of a JSONL log that lie after ``step``, and a line cut short by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError):
            break
        kept.append(line + "\n")
    with written_whole(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """Optimizer state as safetensors wants it: ``{"<parameter>.<name>": tensor}`` and the numbers of the groups."""
    saved = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.contiguous()
        for index, entry in saved["state"].items()
        for name, value in entry.items()
        if isinstance(value, torch.Tensor)
    }
    groups = [{key: value for key, value in group.items() if key != "params"} for group in saved["param_groups"]]
    return tensors, {"param_groups": groups}


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], scalars: dict) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    current = optimizer.state_dict()["param_groups"]
    if len(current) != len(scalars["param_groups"]):
        raise ValueError("the optimizer has other parameter groups")
    groups = [{**saved, "params": now["params"]} for saved, now in zip(scalars["param_groups"], current, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
