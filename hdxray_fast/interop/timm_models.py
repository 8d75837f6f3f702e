"""The encoders in timm's registry: ``timm.create_model("hdxray_vit_base_patch16_1280")`` after ``import hdxray_fast``.

The models are those of ``timm_encoder``. Parameter names are the encoder's, and ``head.weight`` and ``head.bias``.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from torch import Tensor

from ..errors import ArgumentError
from ..models.encoder import Encoder
from ..models.encoder_config import DEFAULTS, EncoderConfig
from ..models.presets import ENCODERS
from ..weights.adapt import fit_positions, split_positions
from ..weights.create import create_encoder
from ..weights.model_folders import CONFIG_FILE, ENCODER_FORMAT, MAE_FORMAT, MODEL_FILE
from ..weights.shipped import PRETRAINED, pretrained_card, pretrained_encoders
from ..weights.source_files import TENSOR_FILES, read_json
from .timm_encoder import NOT_HERE, OURS, TimmEncoder, check_pool

__all__ = ["TimmEncoder"]  # timm adds the models' names

_RATES = ("drop_rate", "drop_path_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate")
_SIZES = ("dynamic_img_size", "dynamic_img_pad")
_ACCEPTED = OURS | {"num_classes", "global_pool", "init_values", "weights", "device", "dtype", *_RATES, *_SIZES}
_REFUSED = {  # options of timm's ViT: the value that changes nothing, and why no other is accepted
    "qk_norm": (False, "these encoders have no such weights"),
    "pre_norm": (False, "these encoders have no such weights"),
    "attn_drop_rate": (0.0, f"attention weights are never formed; there are {', '.join(_RATES)}"),
}

_told: list[str] = []  # of the models of this process the one that a warning of pixels was given for
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


def _translated(options: dict[str, Any]) -> dict[str, Any]:
    """Options of timm's ViT as ours; those that would change nothing are left out, others refused."""
    options = dict(options)
    if unfit := sorted(set(NOT_HERE) & set(options)):
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
    if unknown := sorted(set(settings) - OURS):
        raise ArgumentError(f"{unknown[0]}: is no option here, accepted are {', '.join(sorted(_ACCEPTED))}")
    config = encoder.config if encoder else EncoderConfig(**DEFAULTS | ENCODERS[name] | settings)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ArgumentError(f"num_classes: got {num_classes!r}, accepted is an int of at least 0")
    global_pool = global_pool if global_pool is not None else "token" if config.class_token else "avg"
    check_pool(global_pool, config.class_token)
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
    encoder = create_encoder(name, weights=weights, **{n: value for n, value in options.items() if n in OURS})
    if encoder.normalisation == "per_image" and not _told:
        _told.append(name)
        warnings.warn(
            "weights: were trained on images of mean 0 and deviation 1 each, for which timm's transforms have no "
            "setting (mean and std of pretrained_cfg are rough values, and features by them differ); use "
            "model.transform() (with features_only=True model.model.transform()), or model.normalise(images, valid), "
            "valid being the patches that are no padding, or give integer images without padding",
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
            settings = {n: value for n, value in kwargs.items() if n in OURS}
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
