"""Whether a layer may be read instead of called."""

from __future__ import annotations

import torch.nn.modules.module as module_globals
from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``layer`` is nothing but ``kind``'s arithmetic on its weight and bias.

    Only then may a fused operation read these and leave the call out. Adapters, quantisers and parametrisations change
    the type of a layer or of its weight, offloading its ``forward``; pruning, weight norms, probes and profilers hang
    hooks on it.
    """
    if type(layer) is not kind or type(layer._parameters.get("weight")) is not nn.Parameter:
        return False
    if any(getattr(layer, hooks) for hooks in _HOOKS) or "forward" in layer.__dict__:
        return False
    return not any(getattr(module_globals, hooks, None) for hooks in _GLOBAL_HOOKS)
