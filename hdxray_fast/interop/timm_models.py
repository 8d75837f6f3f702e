"""The encoders in timm's registry: ``timm.create_model("hdxray_vit_base_patch16_1280")`` after ``import hdxray_fast``.

The models are this package's encoder over whole images, with a linear head and the other verbs that timm's training
scripts use. Parameter names are the encoder's, and ``head.weight`` and ``head.bias``.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchDropout
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from torch import Tensor, nn

from ..errors import ArgumentError
from ..models import dense
from ..models.encoder import Encoder
from ..models.encoder_config import DEFAULTS, EncoderConfig
from ..models.layers import init_weights
from ..models.presets import ENCODERS
from ..ops.compiling import writes_graph
from ..weights.adapt import fit_positions, split_positions
from ..weights.create import create_encoder
from ..weights.model_folders import CONFIG_FILE, ENCODER_FORMAT, MAE_FORMAT, MODEL_FILE
from ..weights.shipped import PRETRAINED, pretrained_card, pretrained_encoders
from ..weights.source_files import TENSOR_FILES, read_json

__all__ = ["TimmEncoder"]  # timm adds the models' names

POOLS = ("", "token", "avg", "max", "avgmax", "map")
_NOT_HERE = ("keep", "margin", "pool")  # timm hands over pixels alone, and calls pooling global_pool
_OURS = {field.name for field in fields(EncoderConfig)} - {"stem", *_NOT_HERE}
_RATES = ("drop_rate", "drop_path_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate")
_SIZES = ("dynamic_img_size", "dynamic_img_pad")
_ACCEPTED = _OURS | {"num_classes", "global_pool", "init_values", "weights", "device", "dtype", *_RATES, *_SIZES}
_REFUSED = {  # options of timm's ViT: the value that changes nothing, and why no other is accepted
    "qk_norm": (False, "these encoders have no such weights"),
    "pre_norm": (False, "these encoders have no such weights"),
    "attn_drop_rate": (0.0, f"attention weights are never formed; there are {', '.join(_RATES)}"),
}

_SHIPPED = {name: str(pretrained_card(name).with_name(MODEL_FILE)) for name in pretrained_encoders()}
_SOURCES = {"file", "hf_hub_id", "state_dict", "url"}  # in a pretrained_cfg, of weights
_ROUGH_MEAN, _ROUGH_STD = 0.5, 0.25  # of radiographs; weights trained with a fixed mean and deviation say their own

default_cfgs = generate_default_cfgs(
    {
        f"hdxray_{name}_1280": {
            "input_size": (1, 1280, 1280),
            "fixed_input_size": True,
            "num_classes": 0,
            "pool_size": None,
            "crop_pct": 1.0,
            "crop_mode": "border",
            "interpolation": "bicubic",
            "mean": (_ROUGH_MEAN,),
            "std": (_ROUGH_STD,),
            "first_conv": "patch_embed.conv1" if settings["stem"] == "stem64" else "patch_embed.proj",
            "classifier": "head",
            "file": _SHIPPED.get(name),
        }
        for name, settings in ENCODERS.items()
    }
)


class TimmEncoder(Encoder):
    """:class:`hdxray_fast.models.encoder.Encoder` as timm's training scripts expect a model.

    Args:
        config: the encoder's settings; ``pool`` is ``"attention"`` for ``global_pool="map"`` and otherwise ``None``.
        num_classes: outputs of the head; 0 for none.
        global_pool: ``"token"``, ``"avg"``, ``"max"``, ``"avgmax"`` (half of both), ``"map"`` or ``""`` (tokens).
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, rising from 0 in the first.
        proj_drop_rate: dropout after each block's attention, and within and after its MLP.
        pos_drop_rate: dropout of the embedded tokens with their positions.
        patch_drop_rate: share of the patches that an image loses while the model trains.
        dynamic_img_size: take images of other multiples of the patch size too; see :class:`.Encoder`.
        dynamic_img_pad: and of any size: float images are padded with zeros, at the right and the bottom.
    """

    def __init__(
        self,
        config: EncoderConfig,
        num_classes: int,
        global_pool: str,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        dynamic_img_size: bool = False,
        dynamic_img_pad: bool = False,
    ) -> None:
        super().__init__(config)
        if dynamic_img_pad and not dynamic_img_size:
            raise ArgumentError("dynamic_img_pad: got True, accepted is that with dynamic_img_size=True alone")
        self.dynamic_img_size, self.dynamic_img_pad = bool(dynamic_img_size), bool(dynamic_img_pad)
        self.num_classes, self.global_pool = num_classes, global_pool
        self.head_hidden_size = self.num_features
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _head(self.num_features, num_classes)
        self.pos_drop = nn.Dropout(pos_drop_rate) if pos_drop_rate else nn.Identity()
        prefix = self.num_prefix_tokens
        self.patch_drop = PatchDropout(patch_drop_rate, prefix) if patch_drop_rate else nn.Identity()
        for block in self.blocks if proj_drop_rate else ():
            block.attn.proj_drop, block.mlp.drop = nn.Dropout(proj_drop_rate), nn.Dropout(proj_drop_rate)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": self.num_features, "reduction": self.patch_size}
            for i in range(config.depth)
        ]
        self.set_drop_path(drop_path_rate)

    @property
    def saved_config(self) -> EncoderConfig:
        """With the pooling that timm calls ``avg``, which the config here knows nothing of."""
        return replace(self.config, pool="mean") if self.global_pool == "avg" else self.config

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm writes beside the weights it saves: how such a model is built again, from no other file."""
        return self.__dict__.get("_built_by", {})

    @_model_args.setter
    def _model_args(self, options: dict[str, Any]) -> None:
        if "weights" in options:
            options = {n: getattr(self.config, n) for n in _OURS} | {n: v for n, v in options.items() if n != "weights"}
        self.__dict__["_built_by"] = options

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, num_classes], without head [B, D]
        """Logits; features with ``num_classes=0``; tokens with ``global_pool=""`` as well."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens ``[B, num_prefix_tokens + P, D]`` to logits, or to what the head sees."""
        x = self.head_drop(self._pooled(x))
        return x if pre_logits else self.head(x)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.global_pool == "token":
            return self.fc_norm(x[:, 0])
        if self.global_pool in ("avg", "max", "avgmax"):
            return self.fc_norm(_reduced(x[:, self.num_prefix_tokens :], self.global_pool))
        if self.global_pool == "map":
            if writes_graph():
                return self.fc_norm(dense.attention_pooled(self.attn_pool, x))
            cu_seqlens = x.shape[1] * torch.arange(x.shape[0] + 1, dtype=torch.int32, device=x.device)
            return self.fc_norm(self.attn_pool(x.flatten(0, 1), cu_seqlens, x.shape[1]))
        return self.fc_norm(x)

    @wraps(Encoder.forward_intermediates)  # refused while patch_drop_rate leaves holes in the maps
    def forward_intermediates(self, *args: Any, **kwargs: Any) -> list | tuple | dict:
        if self._drops_patches():
            raise ArgumentError(
                "patch_drop_rate: while it drops patches there are no whole maps; call model.eval() or create the "
                "model without it"
            )
        return super().forward_intermediates(*args, **kwargs)

    def _drops_patches(self) -> bool:
        return self.patch_drop.training and not isinstance(self.patch_drop, nn.Identity)

    def _start(self, images, plan, scale, shift, view=None) -> tuple[Tensor, Tensor | None, int]:
        x, cu_seqlens, longest = super()._start(images, plan, scale, shift, view)
        x = self.pos_drop(x)
        if not self._drops_patches():
            return x, cu_seqlens, longest
        if cu_seqlens is not None:
            raise ArgumentError("plan: says which patches are seen; create the model without patch_drop_rate")
        x = self.patch_drop(x)
        return x, None, x.shape[1]

    def _inputs(self, images, *args: Any, **kwargs: Any):
        return super()._inputs(self._padded(images) if self.dynamic_img_pad else images, *args, **kwargs)

    def _padded(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> whole patches
        if not isinstance(images, Tensor) or images.dim() != 4:
            return images  # what is wrong with it is said later
        height, width = images.shape[2:]
        bottom, right = -height % self.patch_size, -width % self.patch_size
        if not bottom and not right:
            return images
        if not images.is_floating_point():
            raise ArgumentError(
                f"images: got {images.dtype} of {height} x {width} pixels; dynamic_img_pad pads normalised float "
                f"images, accepted of others are multiples of {self.patch_size}"
            )
        return F.pad(images, (0, right, 0, bottom))

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for another number of classes, and if wanted another pooling."""
        if global_pool is not None and global_pool != self.global_pool:
            _check_pool(global_pool, self.config.class_token)
            if global_pool == "map":
                raise ArgumentError(
                    f"global_pool: got 'map' in a model with {self.global_pool!r}; attention pooling has weights, "
                    "create the model with it"
                )
            if self.global_pool == "map":
                del self.attn_pool
                self.config = replace(self.config, pool=None)
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = _head(self.num_features, num_classes).to(self.pos_embed)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which block, for learning rates that decay with depth."""
        return {
            "stem": r"^cls_token|^reg_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|^fc_norm|^attn_pool", (99999,))],
        }

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Take images of another size; the patch size stays."""
        if patch_size not in (None, self.patch_size, (self.patch_size, self.patch_size)):
            raise ArgumentError(f"patch_size: got {patch_size}, this model has {self.patch_size}")
        if img_size is not None:
            super().set_input_size(img_size if isinstance(img_size, int) else tuple(img_size))

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last one of ``indices``, which are returned counted from 0; without its head the
        model gives tokens.
        """
        depth = len(self.blocks)
        wanted = (
            list(range(depth - indices, depth))
            if isinstance(indices, int)
            else [i + depth if i < 0 else i for i in indices]
        )
        if not wanted or not all(0 <= i < depth for i in wanted):
            raise ArgumentError(f"indices: got {indices!r}, accepted are blocks 0 to {depth - 1} (or -{depth} to -1)")
        self.blocks = self.blocks[: max(wanted) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return wanted


def _reduced(patches: Tensor, how: str) -> Tensor:  # [B, P, D] -> [B, D]
    if how == "avgmax":
        return 0.5 * (patches.mean(dim=1) + patches.amax(dim=1))
    return patches.amax(dim=1) if how == "max" else patches.mean(dim=1)


def _head(num_features: int, num_classes: int) -> nn.Module:
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(num_features, num_classes)
    init_weights(head)
    return head


def _check_pool(global_pool: str, class_token: bool) -> None:
    if global_pool not in POOLS:
        raise ArgumentError(f"global_pool: got {global_pool!r}, accepted are {', '.join(map(repr, POOLS))}")
    if global_pool == "token" and not class_token:
        raise ArgumentError("global_pool: got 'token', but class_token is False; accepted are all others")


def _translated(options: dict[str, Any]) -> dict[str, Any]:
    """Options of timm's ViT as ours; those that would change nothing are left out, others refused."""
    options = dict(options)
    if unfit := sorted(set(_NOT_HERE) & set(options)):
        raise ArgumentError(
            f"{unfit[0]}: is no option here; pooling is called global_pool, and pruning is for "
            "hdxray_fast.create_encoder, because timm's loaders know no contour"
        )
    for option, (neutral, why) in _REFUSED.items():
        if (value := options.pop(option, neutral)) != neutral:
            raise ArgumentError(f"{option}: got {value!r}, accepted is {neutral!r}; {why}")
    if "init_values" in options:
        if "layer_scale" in options:
            raise ArgumentError("init_values: is timm's name of layer_scale, which is given too; leave one out")
        options["layer_scale"] = options.pop("init_values")
    if isinstance(options.get("img_size"), list):
        options["img_size"] = tuple(options["img_size"])
    return options


def _build(
    name: str,
    encoder: Encoder | None = None,
    num_classes: int = 0,
    global_pool: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **settings: Any,
) -> TimmEncoder:
    """The model, with the weights of ``encoder`` if there is one: ``settings`` are then in it already."""
    regularised = {n: settings.pop(n) for n in (*_RATES, *_SIZES) if n in settings}
    for option, rate in regularised.items():
        if option in _RATES and not 0 <= rate < 1:
            raise ArgumentError(f"{option}: got {rate!r}, accepted is a share from 0 to below 1")
    if unknown := sorted(set(settings) - _OURS):
        raise ArgumentError(f"{unknown[0]}: is no option here, accepted are {', '.join(sorted(_ACCEPTED))}")
    config = encoder.config if encoder else EncoderConfig(**DEFAULTS | ENCODERS[name] | settings)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ArgumentError(f"num_classes: got {num_classes!r}, accepted is an int of at least 0")
    global_pool = global_pool if global_pool is not None else "token" if config.class_token else "avg"
    _check_pool(global_pool, config.class_token)
    config = replace(config, keep="all", pool="attention" if global_pool == "map" else None)
    model = TimmEncoder(config, num_classes, global_pool, **regularised)
    if encoder:
        model.load_report = encoder.load_report
        model.load_state_dict(encoder.state_dict() | {n: t for n, t in model.state_dict().items() if _is_new(n)})
    return model.to(device=device, dtype=dtype)


def _is_new(name: str) -> bool:
    return name.startswith(("head.", "attn_pool."))


def _fitted(tensors: dict[str, Tensor], model: TimmEncoder) -> dict[str, Tensor]:
    """Weights of an encoder alone, for a model with a head of its own and maybe of another size.

    The head stays as it is, positions are brought to the model's grid.
    """
    tensors = dict(tensors.get("state_dict", tensors.get("model", tensors)))
    table = tensors.get("pos_embed")
    if table is not None and table.shape[1] != model.pos_embed.shape[1]:
        _, height, width = model.pretrained_cfg["input_size"]
        told = height // model.patch_size, width // model.patch_size
        prefix, grid, sincos = split_positions(table, (int(model.has_class_token),), (told,), "pretrained weights")
        fit_positions(tensors, model.has_class_token, prefix, grid, model.grid_size, sincos)
    return {n: t for n, t in model.state_dict().items() if _is_new(n)} | tensors


def _pixels(config: EncoderConfig) -> dict[str, Any]:
    """What timm's ``pretrained_cfg`` says of the images that ``config`` is for, with a mean for each channel."""
    rough = config.normalisation == "per_image"
    mean, std = (_ROUGH_MEAN, _ROUGH_STD) if rough else config.normalisation
    channels = config.in_chans
    return {"input_size": (channels, *config.img_size), "mean": (mean,) * channels, "std": (std,) * channels}


def _unless_told(pixels: dict[str, Any], name: str, options: dict[str, Any]) -> dict[str, Any]:
    """``pixels`` without what a ``pretrained_cfg`` among the options says otherwise than the registry does."""
    told = options.get("pretrained_cfg")
    told = told if isinstance(told, dict) else told.to_dict() if isinstance(told, PretrainedCfg) else {}
    usual = get_pretrained_cfg(f"hdxray_{name}_1280").to_dict()
    return {key: value for key, value in pixels.items() if told.get(key) in (None, usual[key])}


def _saved_by_us(file: object) -> bool:
    """Whether a file of weights lies in a folder of :func:`.save_model`, which says what they are of."""
    if not isinstance(file, str | os.PathLike) or Path(file).name not in TENSOR_FILES:
        return False
    return read_json(Path(file).parent / CONFIG_FILE).get("format") in (ENCODER_FORMAT, MAE_FORMAT)


def _load(name: str, weights: str | os.PathLike, options: dict[str, Any]) -> Encoder:
    """The encoder of ``weights``, of their own size and channels unless ``options`` say others."""
    encoder = create_encoder(name, weights=weights, **{n: value for n, value in options.items() if n in _OURS})
    if encoder.normalisation == "per_image":
        warnings.warn(
            "weights: were trained on images of mean 0 and deviation 1 each, for which timm's transforms have no "
            "setting (mean and std of pretrained_cfg are rough values, and features by them differ); use "
            "model.transform() or model.normalise(images), or give integer images",
            stacklevel=4,
        )
    return encoder


def _entry(name: str):
    def create(pretrained: bool = False, **kwargs: Any) -> TimmEncoder:
        kwargs = _translated(kwargs)
        overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
        weights = kwargs.pop("weights", None)
        if weights is not None and pretrained:
            raise ArgumentError("weights: given with pretrained=True; leave one of them out")
        if pretrained and _saved_by_us(overlay.get("file")):
            weights, pretrained = overlay["file"], False
        elif pretrained and not _SOURCES & set(overlay) and not kwargs.get("pretrained_cfg"):
            weights, pretrained = PRETRAINED, False
        if weights is not None:
            encoder = kwargs["encoder"] = _load(name, weights, kwargs)
            kwargs["img_size"], kwargs["in_chans"] = encoder.img_size, encoder.in_chans
            overlay = _unless_told(_pixels(encoder.config), name, kwargs) | overlay
        elif not pretrained:  # timm takes what is said of the images for what is known of pretrained weights
            settings = {n: value for n, value in kwargs.items() if n in _OURS}
            pixels = _pixels(EncoderConfig(**DEFAULTS | ENCODERS[name] | settings))
            overlay = _unless_told(pixels, name, kwargs) | overlay
        return build_model_with_cfg(
            lambda **settings: _build(name, **settings),
            f"hdxray_{name}_1280",
            pretrained,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=_fitted,
            feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
            **kwargs,
        )

    create.__name__ = create.__qualname__ = f"hdxray_{name}_1280"
    create.__doc__ = f"{name} of hdxray_fast for images of 1280 x 1280 pixels and one channel."
    return create


def register() -> None:
    """Enter the models into timm's registry."""
    for name in ENCODERS:
        entry = _entry(name)
        globals()[entry.__name__] = entry
        register_model(entry)
