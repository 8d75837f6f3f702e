"""What tells weights, and the settings of encoders, apart: a few hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields

import torch
from torch import Tensor, nn

from ..models.encoder_config import EncoderConfig


def tensors_print(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """32 digits that change with every name and value."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def weights_print(module: nn.Module) -> str:
    """Tells the weights of modules apart."""
    return tensors_print(module.state_dict().items())


def settings_of(config: EncoderConfig) -> dict[str, object]:
    """The settings that tell encoders apart, JSON-able; what their weights began from is none."""
    return {field.name: getattr(config, field.name) for field in fields(config) if field.compare}


def settings_print(config: EncoderConfig) -> str:
    """Tells encoders apart whose tensors may be alike; settings at their defaults have no part in it, so that one that
    a later version adds changes nothing."""
    default = {field.name: field.default for field in fields(config)}
    given = {name: value for name, value in settings_of(config).items() if value != default[name]}
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:32]
