"""Learning rates of a classifier that fall towards the input."""

from __future__ import annotations

from torch import nn

from ..models.encoder import Encoder


def layer_decay_groups(encoder: Encoder, head: nn.Module, weight_decay: float, decay: float) -> list[dict]:
    """AdamW groups of a classifier whose learning rates fall towards the input, as BEiT and MAE fine-tune.

    Each group has ``lr_scale``, the share of the learning rate it moves by: 1 for the head and the last norm,
    ``decay`` for the last block, ``decay ** depth`` for the first, and once more for patch embedding and tokens.

    Args:
        encoder: whose trainable parameters are taken.
        head: likewise.
        weight_decay: of matrices; biases, norms, learned tokens and positions have none.
        decay: above 0, up to 1.
    """
    depth = len(encoder.blocks)
    exempt = encoder.no_weight_decay()
    groups: dict[tuple[int, bool], dict] = {}

    def put(parameter: nn.Parameter, layer: int, decayed: bool) -> None:
        empty = {
            "params": [],
            "weight_decay": weight_decay if decayed else 0.0,
            "lr_scale": decay ** (depth + 1 - layer),
        }
        groups.setdefault((layer, decayed), empty)["params"].append(parameter)

    for name, parameter in encoder.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = depth + 1 if name.startswith(("norm", "fc_norm", "attn_pool")) else 0
        put(parameter, layer, parameter.ndim > 1 and name not in exempt)
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            put(parameter, depth + 1, parameter.ndim > 1 and not name.endswith(("query", "queries")))
    return [groups[key] for key in sorted(groups)]
