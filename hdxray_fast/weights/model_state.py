"""What of a model goes to disk: its own tensors, out of all wrappers, and just those that a load will ask for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import ArgumentError

COMPILED = "_orig_mod."  # what torch.compile puts in front of the names of what it wraps

# Part of a tensor's name, what was done to the model, and how it is undone.
_CHANGED = {
    "parametrizations.": ("is parametrised", "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"),
    "weight_orig": ("is pruned, or its norm is", "torch.nn.utils.prune.remove(layer, 'weight')"),
    "weight_g": ("has a weight norm", "torch.nn.utils.remove_weight_norm(layer)"),
    "lora_": ("holds adapters", "model = model.merge_and_unload()"),
    "base_layer": ("holds adapters", "model = model.merge_and_unload()"),
    "base_model.": ("holds adapters", "model = model.merge_and_unload()"),
    "_packed_params": ("is quantised", "keeping the model of floats, which can be saved"),
}


def unwrapped(model: object) -> object:
    """The model within ``torch.compile``, ``DistributedDataParallel`` and ``DataParallel``, however often wrapped."""
    while isinstance(model, nn.Module):
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def state_to_save(model: nn.Module, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``model`` by the names that they have without wrappers, contiguous on the CPU.

    Args:
        model: to be saved.
        like: the state dict of a model as it will be built again, whose shapes alone are looked at.

    Raises:
        ArgumentError: names, shapes or kinds are others than a load will ask for; how that comes about and is undone.
    """
    tensors = {name.replace(COMPILED, ""): value for name, value in model.state_dict().items()}
    differences = [f"{name} is missing" for name in like if name not in tensors]
    differences += [f"{name} is none of its own" for name in tensors if name not in like]
    for name in like.keys() & tensors.keys():
        value = tensors[name]
        if not isinstance(value, Tensor) or value.shape != like[name].shape:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            differences.append(f"{name} is {found}, its config says {list(like[name].shape)}")
        elif not value.is_floating_point() or value.is_quantized:
            differences.append(f"{name} is {value.dtype}: a model of floats can be saved, and be quantised again")
        elif value.is_meta:
            differences.append(f"{name} has no values here, it is offloaded or on the meta device")
        elif isinstance(value, DTensor):
            differences.append(f"{name} is shared among processes: torch.distributed.checkpoint.state_dict gathers it")
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ArgumentError(f"model: cannot be saved{_reason(tensors)}: {'; '.join(differences[:3])}{more}")
    return {name: value.detach().contiguous().cpu() for name, value in tensors.items()}


def shapes_of(build) -> dict[str, Tensor]:
    """State dict of the model that ``build()`` makes, without values."""
    with torch.device("meta"):
        return build().state_dict()


def _reason(names: Mapping[str, Tensor]) -> str:
    for part, (what, undo) in _CHANGED.items():
        if any(part in name for name in names):
            return f", it {what} (undone by {undo})"
    return ""
