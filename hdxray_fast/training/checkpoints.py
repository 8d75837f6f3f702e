"""Checkpoints of a training run: whole, or absent.

A checkpoint is a folder of safetensors and JSON files. It holds whole tensors under the names of the model's
parameters, whatever the number of processes that trained it and however they shared the model: any number of processes
can go on from it: how a run resumes is `loop.py`'s `_restore`, which asks for `resume_latest`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import CheckpointError
from ..files import checksum, flush, save_tensors, temporary_name
from ..regular_files import check_listed_file, load_tensors, read_json
from .optimizer import AveragedWeights

STATE_FILE = "state.json"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
EMA_FILE = "ema.safetensors"
CHECKSUMS_FILE = "checksums.json"
OF_A_SAVE = (STATE_FILE, CHECKSUMS_FILE)  # what tells a checkpoint from a folder that is only called as one
# How the optimizer computes on this device. The learning rate, too, stays where it is: every step sets it anew.
OF_THIS_RUN = ("capturable", "fused", "foreach")


def checkpoint_folder(root: Path, step: int) -> Path:
    """``root/step_00000123``."""
    return root / f"step_{step:08d}"


def checkpoint_folders(root: Path) -> list[Path]:
    """The checkpoints under ``root``, oldest first.

    What is called otherwise, such as ``step_00000100_best``, is somebody's own and none of the run's business.
    """
    steps = (int(match[1]) for path in root.glob("step_*") if (match := re.fullmatch(r"step_(\d+)", path.name)))
    return [folder for step in sorted(set(steps)) if (folder := checkpoint_folder(root, step)).is_dir()]


@dataclass
class Snapshot:
    """Everything that a checkpoint holds of model, optimizer and averaged weights, whole and on the CPU."""

    tensors: dict[str, dict[str, Tensor]]  # by file
    numbers: dict


def take_snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, ema: AveragedWeights | None = None, keep: bool = True
) -> Snapshot:
    """Gather what a checkpoint holds; where the model is sharded, every process must call this.

    Args:
        model: as it is trained.
        optimizer: of the model's parameters.
        ema: averaged weights, if any.
        keep: False on a process that does not write: it gets empty files.
    """
    tensors, groups = _flatten(model, optimizer)
    files = {MODEL_FILE: whole_state(model, keep), OPTIMIZER_FILE: _whole(tensors, keep)}
    numbers = {"optimizer_groups": groups}
    if ema is not None:
        files[EMA_FILE] = _whole(ema.tensors, keep)
        numbers["ema_updates"] = ema.updates
    return Snapshot(files, numbers)


def write_checkpoint(
    folder: Path, snapshot: Snapshot, state: dict, json_files: Mapping[str, dict] | None = None
) -> None:
    """Write a snapshot and ``state`` (JSON-able) under ``folder``.

    All files are written and flushed in a temporary folder beside it, which is then renamed: a reader, or a restart
    after ``kill -9`` or a power loss, finds the whole checkpoint or none. The checksum of each file is kept with them.

    Args:
        folder: see :func:`checkpoint_folder`.
        snapshot: from :func:`take_snapshot`.
        state: what else the run needs to go on.
        json_files: further files by name, such as the ``config.json`` that makes the folder a model to load.

    Raises:
        CheckpointError: the folder cannot be written; older checkpoints are as they were.
    """
    temporary = temporary_name(folder)
    try:
        _write(folder, temporary, snapshot.tensors, {STATE_FILE: {**state, **snapshot.numbers}, **(json_files or {})})
    except Exception as error:  # safetensors raises its own, the file system OSError
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: this checkpoint cannot be written ({error}); the ones before it are whole, and --resume auto "
            "goes on from them once there is room"
        ) from error


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    ema: AveragedWeights | None = None,
    json_files: Mapping[str, dict] | None = None,
) -> None:
    """:func:`take_snapshot` and :func:`write_checkpoint`, of a model that one process holds."""
    write_checkpoint(folder, take_snapshot(model, optimizer, ema), state, json_files)


def _write(folder: Path, temporary: Path, tensors: dict[str, dict[str, Tensor]], contents: dict[str, dict]) -> None:
    temporary.mkdir(parents=True)
    for name, content in tensors.items():
        save_tensors(content, temporary / name, {"format": "pt"})
    for name, content in contents.items():
        (temporary / name).write_text(json.dumps(content, indent=1))
    checksums = {path.name: checksum(path) for path in sorted(temporary.iterdir())}
    (temporary / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=1))
    for path in temporary.iterdir():
        flush(path)
    flush(temporary)
    _remove(folder)  # only a failed step saved twice finds one here
    os.replace(temporary, folder)
    flush(folder.parent)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: AveragedWeights | None = None
) -> dict:
    """Restore what :func:`save_checkpoint` wrote, and return its ``state``.

    Raises:
        CheckpointError: a file is missing, damaged, or of another model.
    """
    from safetensors import SafetensorError

    try:
        for name, digest in read_json(folder / CHECKSUMS_FILE).items():
            check_listed_file(folder / name)
            if checksum(folder / name) != digest:
                raise CheckpointError(f"{folder / name} is damaged: its checksum differs")
        state = read_json(folder / STATE_FILE)
        weights = load_tensors(folder / MODEL_FILE)
        tensors = load_tensors(folder / OPTIMIZER_FILE)
        averaged = load_tensors(folder / EMA_FILE) if ema is not None else {}
        _restore_model(model, weights)
        _restore_optimizer(model, optimizer, tensors, state.pop("optimizer_groups"))
        if ema is not None:
            if averaged.keys() != ema.tensors.keys():
                raise ValueError("the averaged weights are of other parameters")
            for name, tensor in ema.tensors.items():
                tensor.copy_(_like(averaged[name], tensor))
            ema.updates = state.pop("ema_updates")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot resume from this checkpoint ({error})") from error
    return state


def resume_latest(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: AveragedWeights | None = None
) -> dict | None:
    """Restore the newest whole checkpoint under ``root``; an older one stands in for a damaged one, with a warning.

    Returns:
        The checkpoint's state, or ``None`` where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    failures = []
    for folder in reversed(checkpoint_folders(root)):
        try:
            state = load_checkpoint(folder, model, optimizer, ema)
            _check_state(folder, state)
            return state
        except CheckpointError as error:
            failures.append(str(error))
            warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
    if failures:
        raise CheckpointError("no checkpoint of this run can be read: " + "; ".join(failures))
    return None


def _check_state(folder: Path, state: dict) -> None:
    """Refuse a state of another step than the folder's: the log is cut there, and counted up to it."""
    if type(state.get("step")) is not int or state["step"] != _step(folder):
        raise CheckpointError(f"{folder / STATE_FILE} is damaged: it is not the state of step {_step(folder)}")


def prune_checkpoints(root: Path, keep: int, keep_every: int = 0) -> None:
    """Remove what an interrupted save left, and all checkpoints but the newest ``keep``.

    Those of the steps ``keep_every``, ``2 * keep_every``... stay too, unless it is 0.
    """
    for folder in checkpoint_folders(root)[:-keep]:
        if not (keep_every and _step(folder) % keep_every == 0):
            _remove(folder)
    for folder in root.glob(".step_*.tmp"):
        if re.fullmatch(r"\.step_\d+(\.\d+\.[0-9a-f]{16})?\.tmp", folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def set_aside_after(root: Path, step: int) -> None:
    """Rename what lies after ``step`` to ``damaged_step_...``: a resumed run has passed it over and will save anew."""
    for folder in checkpoint_folders(root):
        if _step(folder) > step:
            aside = folder.with_name(f"damaged_{folder.name}")
            _remove(aside)
            if aside.exists():
                raise CheckpointError(f"{aside}: is in the way of a damaged checkpoint, and of no run; move it away")
            folder.rename(aside)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; a folder of such a name that no save has made is somebody's own, and stays."""
    if folder.is_dir() and (not any(folder.iterdir()) or any((folder / name).exists() for name in OF_A_SAVE)):
        shutil.rmtree(folder, ignore_errors=True)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("_")[2])


def whole_state(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """Every tensor of ``model`` whole, contiguous and on the CPU; where it is sharded, all processes must take part.

    Args:
        model: sharded or not.
        keep: False on a process that has no use for them: it gets an empty dict.
    """
    return _whole(model.state_dict(), keep)


def _whole(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in tensors.items():  # one at a time: no device ever holds the whole model
        tensor = tensor.detach()
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            tensor = tensor.cpu().contiguous()
            if tensor.data_ptr() in seen:  # tied weights; safetensors takes no two names for one memory
                tensor = tensor.clone()
            seen.add(tensor.data_ptr())
            kept[name] = tensor
    return kept


def _like(tensor: Tensor, target: Tensor) -> Tensor:
    """``tensor`` sharded as ``target`` is, on its device."""
    if not isinstance(target, DTensor):
        return tensor.to(target.device)
    # every process has read the same file: nothing needs to be sent
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def _restore_model(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    current = model.state_dict()
    if any(isinstance(tensor, DTensor) for tensor in current.values()):
        weights = {name: _like(weights[name], tensor) for name, tensor in current.items()}
    model.load_state_dict(weights)


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Names of the parameters of each group of the optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _flatten(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict]]:
    """Optimizer state as safetensors wants it: ``{"<parameter>/<name>": tensor}``, and the settings of the groups."""
    tensors, groups = {}, []
    for names, group in zip(_parameter_names(model, optimizer), optimizer.param_groups, strict=True):
        for name, parameter in zip(names, group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
        settings = {key: value for key, value in group.items() if key not in ("params", *OF_THIS_RUN)}
        groups.append({**settings, "lr": float(group["lr"]), "parameters": names})
    return tensors, groups


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict]
) -> None:
    names = _parameter_names(model, optimizer)
    if names != [group["parameters"] for group in groups]:
        raise ValueError("the optimizer has other parameter groups")
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    state: dict[int, dict[str, Tensor]] = {}
    settings = []
    count = 0
    for saved, group in zip(groups, optimizer.param_groups, strict=True):
        for index, (name, parameter) in enumerate(zip(saved["parameters"], group["params"], strict=True), count):
            if name in entries:  # the step count is one number; moments are shaped, and sharded, as their parameter
                state[index] = {k: _like(v, parameter) if v.ndim else v for k, v in entries[name].items()}
        indices = list(range(count, count + len(group["params"])))
        settings.append({
            **{key: value for key, value in saved.items() if key != "parameters"},
            **{key: group[key] for key in (*OF_THIS_RUN, "lr") if key in group},
            "params": indices,
        })  # fmt: skip
        count += len(indices)
    optimizer.load_state_dict({"state": state, "param_groups": settings})
