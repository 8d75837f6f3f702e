"""Fold batch norm into the convolutions of a trained contour net: the arrays that `images.contour_net` runs."""

from __future__ import annotations

import numpy as np
from contour_model import ContourNet
from torch import nn


def fold_batch_norm(net: ContourNet) -> dict[str, np.ndarray]:
    """name -> float32 [cout, cin, k, k], "<name>.bias" -> float32 [cout]."""
    weights = {}
    for name, module in net.named_children():
        if isinstance(module, nn.Conv2d):
            weights[name], weights[f"{name}.bias"] = module.weight, module.bias
        else:
            conv, norm, _ = module
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            weights[name] = conv.weight * gain[:, None, None, None]
            weights[f"{name}.bias"] = norm.bias - norm.running_mean * gain
    return {key: np.ascontiguousarray(value.detach().numpy()) for key, value in weights.items()}
