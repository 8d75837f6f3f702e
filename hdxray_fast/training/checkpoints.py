"""Checkpoints of a training run: whole, or absent.

A checkpoint is a folder of safetensors and JSON files. It holds whole tensors under the names of the model's
parameters, whatever the number of processes that trained it and however they shared the model: any number of processes
can go on from it (:mod:`.restoring`). When one is written, and beside what, is :mod:`.saving`'s.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import CheckpointError
from ..files import checksum, flush, save_tensors, temporary_name
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
    """Everything that a checkpoint holds of model, optimizer and averaged weights, whole and in memory of its own.

    The run may go on at once: what it changes next is not what is written.
    """

    tensors: dict[str, dict[str, Tensor]]  # by file, on the host once it was waited for
    numbers: dict
    arrived: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Until all of it is on the host; any thread may."""
        if self.arrived is not None:
            self.arrived.synchronize()


def take_snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, ema: AveragedWeights | None = None, keep: bool = True
) -> Snapshot:
    """Gather what a checkpoint holds; where the model is sharded, every process must call this.

    On a GPU copies to page-locked memory are asked for and not waited for. They stand in the stream of the steps,
    before the next one: it changes the weights in place, and would have to wait for a stream of their own as well.

    Args:
        model: as it is trained.
        optimizer: of the model's parameters.
        ema: averaged weights, if any.
        keep: False on a process that does not write: it gets empty files.
    """
    tensors, groups = _flatten(model, optimizer)
    numbers = {"optimizer_groups": groups}
    files = {MODEL_FILE: _whole(model.state_dict(), keep, _copy), OPTIMIZER_FILE: _whole(tensors, keep, _copy)}
    if ema is not None:
        files[EMA_FILE] = _whole(ema.tensors, keep, _copy)
        numbers["ema_updates"] = ema.updates
    return Snapshot(files, numbers, _asked(model) if keep else None)


def _copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True).contiguous()
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return there.copy_(tensor, non_blocking=True)


def _asked(model: nn.Module) -> torch.cuda.Event | None:
    """Passes when everything asked of the model's device until now is done."""
    device = next(iter(model.parameters())).device
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


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
        snapshot.wait()
        _write(folder, temporary, snapshot.tensors, {STATE_FILE: {**state, **snapshot.numbers}, **(json_files or {})})
    except Exception as error:  # safetensors raises its own, the file system OSError
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: this checkpoint cannot be written ({error}); the ones before it are whole: make room, "
            "and the run goes on from them"
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


def prune_checkpoints(root: Path, keep: int, keep_every: int = 0, keep_step: int | None = None) -> None:
    """Remove what an interrupted save left, and all checkpoints but the newest ``keep``.

    Those of the steps ``keep_every``, ``2 * keep_every``... stay too, unless it is 0, and that of ``keep_step``.
    """
    for folder in checkpoint_folders(root)[:-keep]:
        if not (keep_every and _step(folder) % keep_every == 0) and _step(folder) != keep_step:
            _remove(folder)
    for folder in root.glob(".step_*.tmp"):
        if re.fullmatch(r"\.step_\d+(\.\d+\.[0-9a-f]{16})?\.tmp", folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def set_aside_after(root: Path, step: int, why: str = "damaged") -> None:
    """Rename what lies after ``step`` to ``damaged_step_...``: a resumed run has passed it over and will save anew."""
    for folder in checkpoint_folders(root):
        if _step(folder) > step:
            aside = folder.with_name(f"{why}_{folder.name}")
            _remove(aside)
            if aside.exists():
                raise CheckpointError(
                    f"{aside}: is in the way of a checkpoint that is set aside, and of no run; move it away"
                )
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
    return _whole(model.state_dict(), keep, lambda tensor: tensor.cpu().contiguous())


def _whole(tensors: Mapping[str, Tensor], keep: bool, to_host: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in tensors.items():  # one at a time: no device ever holds the whole model
        tensor = tensor.detach()
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            tensor = to_host(tensor)
            if tensor.data_ptr() in seen:  # tied weights; safetensors takes no two names for one memory
                tensor = tensor.clone()
            seen.add(tensor.data_ptr())
            kept[name] = tensor
    return kept


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Names of the parameters of each group of the optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _flatten(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict]]:
    """Optimizer state as safetensors wants it: ``{"<parameter>/<name>": tensor}``, and the settings of the groups."""
    tensors, groups = {}, []
    for names, group in zip(parameter_names(model, optimizer), optimizer.param_groups, strict=True):
        for name, parameter in zip(names, group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
        settings = {key: value for key, value in group.items() if key not in ("params", *OF_THIS_RUN)}
        groups.append({**settings, "lr": float(group["lr"]), "parameters": names})
    return tensors, groups
