"""How a run goes on: the newest whole checkpoint, read by one process, in the model, the optimizer and the average."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import CheckpointError, ConfigError, HDXrayError
from ..files import checksum
from ..ranks import from_main
from ..regular_files import check_listed_file, load_tensors, read_json, reason_of
from .checkpoints import (
    CHECKSUMS_FILE,
    EMA_FILE,
    MODEL_FILE,
    OF_THIS_RUN,
    OPTIMIZER_FILE,
    STATE_FILE,
    checkpoint_folder,
    checkpoint_folders,
    parameter_names,
)
from .data_record import refuse_other_data
from .kept import Kept
from .optimizer import AveragedWeights
from .processes import broadcast_from_main
from .resuming import ANEW
from .run_folder import LOG
from .run_log import last_step


@dataclass
class Saved:
    """A checkpoint as it was read, its checksums compared: ``state``, and tensors by file and name, on the CPU."""

    state: dict
    tensors: dict[str, dict[str, Tensor]]


def read_checkpoint(folder: Path, averaged: bool = False) -> Saved:
    """All that a checkpoint holds.

    Args:
        folder: of the checkpoint.
        averaged: its averaged weights, too.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    from safetensors import SafetensorError

    try:
        digests = read_json(folder / CHECKSUMS_FILE)
        files = (MODEL_FILE, OPTIMIZER_FILE, *([EMA_FILE] if averaged else []))
        if not isinstance(digests, dict) or not digests.keys() >= {STATE_FILE, *files}:
            raise CheckpointError(f"{folder / CHECKSUMS_FILE} is damaged: it does not name all files")
        for name, digest in digests.items():
            check_listed_file(folder / name)
            if checksum(folder / name) != digest:
                raise CheckpointError(f"{folder / name} is damaged: its checksum differs")
        state = read_json(folder / STATE_FILE)
        return Saved(state, {name: load_tensors(folder / name) for name in files})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot resume from this checkpoint ({error})") from error


class Alone:
    """Reads checkpoints for one process."""

    def folders(self, root: Path) -> list[Path]:
        """The checkpoints under ``root``, oldest first."""
        return checkpoint_folders(root)

    def read(self, folder: Path, averaged: bool) -> Saved:
        """:func:`read_checkpoint`."""
        return read_checkpoint(folder, averaged)


class OneReader(Alone):
    """Of several processes the main one lists, reads and checks; the others are sent what it found.

    Args:
        accelerator: of the run; all of its processes must call the methods.
        timeout: seconds of patience with a process that is gone, for the error.
    """

    def __init__(self, accelerator, timeout: int) -> None:
        self._accelerator, self._timeout = accelerator, timeout

    def folders(self, root: Path) -> list[Path]:
        return from_main(lambda: checkpoint_folders(root), self._timeout)

    def read(self, folder: Path, averaged: bool) -> Saved:
        saved = Saved({}, {})

        def described() -> tuple[dict, dict, str]:
            nonlocal saved
            try:
                saved = read_checkpoint(folder, averaged)
            except CheckpointError as error:
                return {}, {}, str(error)
            shapes = {
                file: {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
                for file, tensors in saved.tensors.items()
            }
            return saved.state, shapes, ""

        state, shapes, failure = from_main(described, self._timeout)
        if failure:
            raise CheckpointError(failure)
        return Saved(
            state,
            {
                file: {
                    name: broadcast_from_main(self._accelerator, saved.tensors.get(file, {}).get(name), shape, dtype)
                    for name, (shape, dtype) in held.items()
                }
                for file, held in shapes.items()
            },
        )


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: AveragedWeights | None = None,
    reader: Alone | None = None,
) -> dict:
    """Restore what :func:`.save_checkpoint` wrote, and return its ``state``.

    Raises:
        CheckpointError: a file is missing, damaged, or of another model.
    """
    saved = (reader or Alone()).read(folder, ema is not None)
    state = saved.state
    try:
        _restore_model(model, saved.tensors[MODEL_FILE])
        _restore_optimizer(model, optimizer, saved.tensors[OPTIMIZER_FILE], state.pop("optimizer_groups"))
        if ema is not None:
            averaged = saved.tensors[EMA_FILE]
            if averaged.keys() != ema.tensors.keys():
                raise ValueError("the averaged weights are of other parameters")
            for name, tensor in ema.tensors.items():
                tensor.copy_(_like(averaged[name], tensor))
            ema.updates = state.pop("ema_updates")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: cannot resume from this checkpoint ({error})") from error
    return state


def go_on(training: Kept) -> bool:
    """Bring a run to where its newest checkpoint has it, if there is one; every process must call this.

    Returns:
        Whether it is longer now, and checkpoints of its former end were passed over.

    Raises:
        ConfigError: the data or the images per step are not those of the run that is resumed.
        CheckpointError: there are checkpoints, and none can be read.
    """
    accelerator = training.accelerator
    reader = OneReader(accelerator, training.config.process_timeout) if accelerator.num_processes > 1 else Alone()
    config, ends = training.config, set()

    def fits(state: dict) -> bool:
        steps = state.get("steps")
        if type(steps) is not int or steps == config.steps or state["step"] <= (config.common_steps(steps) or 0):
            return True
        ends.add(steps)
        return False

    state = resume_latest(training.checkpoints, training.model, training.optimizer, training.ema, reader, fits)
    if state is None:
        if training.is_main and (lost := last_step(training.out / LOG)):
            warnings.warn(
                f"{training.checkpoints}: has no checkpoint, though the log had come to step {lost}; it begins anew",
                stacklevel=2,
            )
        return False
    try:
        _take(training, state)
    except HDXrayError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        at = checkpoint_folder(training.checkpoints, state["step"])
        raise CheckpointError(f"{at}: is damaged, or another task's ({reason_of(error)}); remove it") from error
    for steps in sorted(ends):
        training.print(f"passed over what fell towards its end at step {steps}: there are {config.steps} now")
    return bool(ends)


def _take(training: Kept, state: dict) -> None:
    accelerator, task = training.accelerator, training.task
    refuse_other_data(state, task.fingerprint, task.data_record, training.out)
    if state["images_per_step"] != training.images_per_step:
        raise ConfigError(
            f"batch_size: the run in {training.out} has {state['images_per_step']} images per step "
            f"(batch_size * grad_accum * processes), and not {training.images_per_step}; it goes on with the same"
        )
    training.step = state["step"]
    if accelerator.scaler and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    task.load_state(state["task"])
    steps = training.config.steps
    at = f"going on at step {training.step} of {steps}" if training.step < steps else f"all {steps} steps are done"
    training.print(f"{training.out}: {at}; {ANEW}")


def resume_latest(
    root: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: AveragedWeights | None = None,
    reader: Alone | None = None,
    fits: Callable[[dict], bool] = lambda state: True,
) -> dict | None:
    """Restore the newest whole checkpoint under ``root``; an older one stands in for a damaged one, with a warning.

    Args:
        root: folder of the checkpoints.
        model: as it is trained: after sharding, where it is sharded.
        optimizer: of the model's parameters.
        ema: averaged weights, if any.
        reader: :class:`OneReader` where there are several processes; all must call this.
        fits: whether a run may go on from a state; others are passed over.

    Returns:
        The checkpoint's state, or ``None`` where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    reader, failures, passed_over = reader or Alone(), [], False
    for folder in reversed(reader.folders(root)):
        try:
            state = load_checkpoint(folder, model, optimizer, ema, reader)
            _check_state(folder, state)
            if fits(state):
                return state
            passed_over = True
        except CheckpointError as error:
            failures.append(str(error))
            warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
    if passed_over:
        raise CheckpointError(
            f"{root}: no checkpoint from before the rate fell is there, from which a run that is longer now could go "
            "on; give it the steps it had, or begin a new run with its model as weights"
        )
    if failures:
        raise CheckpointError("no checkpoint of this run can be read: " + "; ".join(failures))
    return None


def _check_state(folder: Path, state: dict) -> None:
    """Refuse a state of another step than the folder's: the log is cut there, and counted up to it."""
    if type(state.get("step")) is not int or folder != checkpoint_folder(folder.parent, state["step"]):
        raise CheckpointError(f"{folder / STATE_FILE} is damaged: it is not the state of the step in {folder.name}")


def _like(tensor: Tensor, target: Tensor) -> Tensor:
    """``tensor`` sharded as ``target`` is, on its device."""
    if not isinstance(target, DTensor):
        return tensor.to(target.device)
    # every process holds the same: nothing needs to be sent
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def _restore_model(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    current = model.state_dict()
    if any(isinstance(tensor, DTensor) for tensor in current.values()):
        weights = {name: _like(weights[name], tensor) for name, tensor in current.items()}
    model.load_state_dict(weights)


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict]
) -> None:
    names = parameter_names(model, optimizer)
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
