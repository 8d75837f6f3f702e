"""The layouts of published ViTs: which names stand for which of ours, what is left out, what the tensors tell."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models.presets import ENCODERS
from .report import shortened
from .source_files import Source

# The first layer of an encoder tells the layout, and what comes before it in the name is the prefix of all.
_FIRST_LAYERS = {
    "patch_embed.conv1.weight": "HD X-ray stem64",
    "patch_embed.proj.weight": "plain ViT: MAE, timm, DINOv2",
    "embeddings.patch_embeddings.projection.weight": "Hugging Face transformers",
}
_STEM64, _PLAIN, _TRANSFORMERS = _FIRST_LAYERS.values()
# If a file holds several encoders: the averaged one, then one without such a name, then the others.
_PREFERENCE = (("teacher", 0), ("student", 2), ("momentum_encoder", 3), ("base_encoder", 2))
_WRAPPERS = re.compile(r"^(?:(?:module|model|student|teacher|backbone|encoder|base_encoder|_orig_mod|vit|dinov2)\.)+")
# What an encoder has no use for, by the name without prefix: heads, poolers, mask tokens, decoders.
_LEFT_OUT = re.compile(
    r"(?:embeddings\.)?mask_token$|masked_embed$|decoder[._]"
    r"|(?:head|head_dist|fc|pre_logits|dino_head|ibot_head|projection_head|predictor|classifier|attn_pool|pooler)\."
)
_PLAIN_NAMES = (
    (r"^register_tokens$", "reg_token"),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 keeps the blocks in chunks, numbered on
    (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),
)
_TRANSFORMERS_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.([qkv])_proj\.", lambda m: f".attn.{_QKV[m[1]]}."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
_QKV = {"q": "query", "k": "key", "v": "value"}
_MODEL_TYPES = ("vit", "vit_mae", "dinov2", "dinov2_with_registers")
_HEADS = {size["embed_dim"]: size["num_heads"] for size in ENCODERS.values()}
# Tensors of other architectures that share a plain ViT's names otherwise: without these they compute something else.
_FOREIGN = (
    (re.compile(r"(^|\.)(norm_pre|pre_norm|layernorm_pre|pre_layrnorm)\."), "a norm before the blocks"),
    (re.compile(r"(relative_position|rel_pos)"), "relative positions"),
    (re.compile(r"(^|\.)(rope|rotary)"), "rotary positions"),
    (re.compile(r"\.mlp\.(weights_in|weights_out|w12|w1|fc1_g)\."), "gated MLPs (SwiGLU)"),
    (re.compile(r"\.attn\.(q_bias|v_bias)$"), "separate biases of queries and values (BEiT, EVA)"),
    (re.compile(r"\.attn\.(q_norm|k_norm)\."), "norms on queries and keys"),
    (re.compile(r"\.attn\.proj_[lw]\."), "talking heads"),
    (re.compile(r"(^|\.)(dist_token|distillation_token)$"), "a distillation token"),
)
# timm's names of models whose tensors look like a plain ViT's and that compute something else
_NOT_PLAIN = re.compile(r"quickgelu|so400m|giantopt|_rpn|gelu_tanh")


@dataclass
class Renamed:
    """Tensors of a source by this package's names.

    Attributes:
        tensors: by our names, and what stands among them under names that are not ours.
        layout: whose names they had.
        unexpected: names of tensors beside the encoder that nothing is known of.
        left_out: names of the source's tensors that an encoder has no use for.
        converted: what was joined.
    """

    tensors: dict[str, Tensor]
    layout: str
    unexpected: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)


def rename(source: Source) -> Renamed:
    """Bring the tensors of ``source`` under this package's names.

    Raises:
        CheckpointError: there is no vision transformer in it, or ``config.json`` tells that it is another one.
    """
    if source.own:
        return Renamed(dict(source.tensors), "written by this package", left_out=source.left_out)
    _check_config(source)
    encoders = _find_encoders(source)
    prefix = min(encoders, key=lambda p: (min([rank for word, rank in _PREFERENCE if word in p], default=1), len(p)))
    layout = encoders[prefix]
    renames = _TRANSFORMERS_NAMES if layout == _TRANSFORMERS else _PLAIN_NAMES
    found = Renamed({}, layout, left_out=list(source.left_out))
    for name, tensor in source.tensors.items():
        owner = max((p for p in encoders if name.startswith(p)), key=len, default=None)
        inner = name.removeprefix(prefix) if owner == prefix else name
        if owner not in (prefix, None) or _LEFT_OUT.match(_WRAPPERS.sub("", inner)):
            found.left_out.append(name)
            continue
        for pattern, replacement in renames:
            inner = re.sub(pattern, replacement, inner)
        if owner is None or inner in found.tensors:
            found.unexpected.append(name)
        else:
            found.tensors[inner] = tensor
    if layout == _TRANSFORMERS:
        _join_qkv(found)
    return found


def infer(source: Source, found: Renamed) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings of an encoder for the tensors, and a line on each that was assumed. Positions are not looked at.

    ``num_heads`` is None if nothing tells it.

    Raises:
        CheckpointError: the tensors are no plain vision transformer's.
    """
    tensors, assumed = found.tensors, {}
    config = {**_timm_args(source.config), **source.config}
    stem = "stem64" if "patch_embed.conv1.weight" in tensors else "patch16"
    first = tensors["patch_embed.conv1.weight" if stem == "stem64" else "patch_embed.proj.weight"]
    blocks = {int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in tensors) if m}
    square = first.dim() == 4 and first.shape[2] == first.shape[3]
    if not square or "blocks.0.norm1.weight" not in tensors or max(blocks) >= len(tensors):
        raise CheckpointError(
            f"{source.label}: is another architecture, not a plain ViT; it has {shortened(sorted(source.tensors))}"
        )
    if source.own:
        return dict(source.settings), assumed
    _refuse_foreign(source, tensors)
    dim, hidden = first.shape[0], tensors.get("blocks.0.mlp.fc1.weight")
    settings: dict[str, Any] = {
        "in_chans": first.shape[1],
        "patch_size": 64 if stem == "stem64" else first.shape[2],
        "stem": stem,
        "embed_dim": dim,
        "depth": max(blocks) + 1,
        "class_token": "cls_token" in tensors,
        "reg_tokens": tensors["reg_token"].shape[1] if _has_dims(tensors.get("reg_token"), 3) else 0,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in tensors else None,
        "fc_norm": "fc_norm.weight" in tensors and "norm.weight" not in tensors,
    }
    if _has_dims(hidden, 2):
        ratio = hidden.shape[0] / dim
        settings["mlp_ratio"] = ratio if int(dim * ratio) == hidden.shape[0] else (hidden.shape[0] + 0.5) / dim
    settings.update(source.settings)
    if size := _config_size(config):
        settings["img_size"] = size
    for option, names, default in (
        ("num_heads", ("num_attention_heads", "num_heads"), _HEADS.get(dim)),
        (
            "norm_eps",
            ("layer_norm_eps",),
            1e-12 if found.layout == _TRANSFORMERS and settings["layer_scale"] is None else 1e-6,
        ),
    ):
        if option in settings:
            continue
        told = next((config[name] for name in names if name in config), None)
        settings[option] = default if told is None else told
        if told is None and default is not None:
            assumed[option] = f"{option} {default}, which the weights do not tell"
    return settings, assumed


def contradictions(source: Source, settings: dict[str, Any]) -> list[str]:
    """What ``config.json`` of transformers tells of and the tensors do not show, in words."""
    config, found = source.config, []
    if source.own or config.get("model_type") not in _MODEL_TYPES:
        return found
    for key, option in (
        ("num_hidden_layers", "depth"),
        ("hidden_size", "embed_dim"),
        ("patch_size", "patch_size"),
        ("qkv_bias", "qkv_bias"),
        ("num_register_tokens", "reg_tokens"),
    ):
        told = config.get(key)
        if told is not None and told != settings[option]:
            found.append(f"{key} {told!r} of config.json (the tensors have {settings[option]!r})")
    if config["model_type"].startswith("dinov2") and settings["layer_scale"] is None:
        found.append("layer_scale*.lambda1")
    return found


# --- parts ------------------------------------------------------------------------------------------------------------
def _refuse_foreign(source: Source, tensors: dict[str, Tensor]) -> None:
    """Raise an error if the tensors are those of a model that an encoder cannot compute, whatever is left out."""
    for pattern, what in _FOREIGN:
        if name := next((name for name in tensors if pattern.search(name)), None):
            raise CheckpointError(f"{source.label}: is another architecture: it has {what} ({name})")
    if "pos_embed" not in tensors:
        raise CheckpointError(
            f"{source.label}: is another architecture: it has no position table (pos_embed), so its positions are "
            "rotary or relative"
        )
    first = tensors.get("patch_embed.conv1.weight", tensors.get("patch_embed.proj.weight"))
    if first.shape[1] not in (1, 3):
        raise CheckpointError(
            f"{source.label}: is another architecture: its first layer takes {first.shape[1]} channels, not 1 or 3"
        )


def _has_dims(tensor: Tensor | None, dims: int) -> bool:
    return tensor is not None and tensor.dim() == dims


def _find_encoders(source: Source) -> dict[str, str]:
    """Prefix to layout of every encoder in the file."""
    encoders: dict[str, str] = {}
    for first, layout in _FIRST_LAYERS.items():  # stem64 has a patch_embed.proj too
        for name in source.tensors:
            if name == first or name.endswith(f".{first}"):
                encoders.setdefault(name.removesuffix(first), layout)
    if not encoders:
        raise CheckpointError(
            f"{source.label}: is another architecture: there is no {' or '.join(_FIRST_LAYERS)} in it; "
            f"it has {shortened(sorted(source.tensors))}"
        )
    return encoders


def _check_config(source: Source) -> None:
    """Raise an error if ``config.json`` tells of something that these tensors do not show."""
    config, label = source.config, source.label
    act_layer = _timm_args(config).get("act_layer", "gelu")
    kind = config.get("model_type")
    if kind is not None and kind not in _MODEL_TYPES:
        reason = f"model_type {kind!r}; accepted are {', '.join(_MODEL_TYPES)}"
    elif config.get("hidden_act", "gelu") != "gelu":
        reason = f"hidden_act {config['hidden_act']!r}; accepted is 'gelu'"
    elif config.get("use_swiglu_ffn"):
        reason = "use_swiglu_ffn; accepted are MLPs of two layers"
    elif act_layer != "gelu":
        reason = f"act_layer {act_layer!r}; accepted is 'gelu'"
    elif _NOT_PLAIN.search(str(config.get("architecture", ""))):
        reason = f"{config['architecture']!r}, which is no plain ViT with GELU"
    else:
        return
    raise CheckpointError(f"{label}: is another architecture: its config.json says {reason}")


def _timm_args(config: dict[str, Any]) -> dict[str, Any]:
    args = config.get("model_args")
    return args if isinstance(args, dict) else {}


def _config_size(config: dict[str, Any]) -> tuple[int, int] | None:
    """Image size that ``config.json`` of transformers or timm tells."""
    size = config.get("image_size", config.get("img_size"))
    if size is None and isinstance(config.get("pretrained_cfg"), dict):
        size = (config["pretrained_cfg"].get("input_size") or [None])[1:]
    size = [size, size] if isinstance(size, int) else size
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int for side in size):
        return size[0], size[1]
    return None


def _join_qkv(found: Renamed) -> None:
    """Query, key and value projections become one, in that order."""
    joined = 0
    for name in [name for name in found.tensors if ".attn.query." in name]:
        names = [name.replace(".query.", f".{part}.") for part in _QKV.values()]
        if all(part in found.tensors for part in names):
            found.tensors[name.replace(".query.", ".qkv.")] = torch.cat([found.tensors.pop(part) for part in names])
            joined += 1
    if joined:
        found.converted.append(f"blocks.*.attn.qkv: {joined} joined from query, key and value")
