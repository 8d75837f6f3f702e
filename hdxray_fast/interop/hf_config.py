"""The encoder's settings as a transformers config, in the ``config.json`` that this package's own folders have."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig

from ..errors import ArgumentError, CheckpointError
from ..models.encoder_config import DEFAULTS, EncoderConfig, preset
from ..weights.hub_files import MODEL_TYPE
from ..weights.model_folders import ENCODER_FORMAT, FORMAT_VERSION

_OPTIONS = tuple(field.name for field in fields(EncoderConfig))


class HDXrayConfig(PretrainedConfig):
    """Settings of an :class:`hdxray_fast.interop.hf.HDXrayModel`.

    Args:
        name: preset that the other settings start from (see :func:`hdxray_fast.list_encoders`).
        **kwargs: fields of :class:`hdxray_fast.EncoderConfig`, also under transformers' names (``hidden_size``,
            ``num_hidden_layers``, ``num_attention_heads``, ``image_size``, ``num_channels``, ``layer_norm_eps``), and
            whatever else a transformers config has.

    Raises:
        ArgumentError, ArgumentTypeError: a setting is not accepted; the message begins with its name.
    """

    model_type = MODEL_TYPE
    attribute_map = {  # noqa: RUF012 (transformers asks for a plain dictionary)
        "hidden_size": "embed_dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
        "image_size": "img_size",
        "num_channels": "in_chans",
        "layer_norm_eps": "norm_eps",
    }

    def __init__(self, name: str = "vit_small_patch16", **kwargs: Any) -> None:
        _check_format(kwargs.pop("format", ENCODER_FORMAT), kwargs.pop("format_version", FORMAT_VERSION))
        saved = kwargs.pop("model", {})
        settings = {**DEFAULTS, **preset(name, {}), **saved}
        for alias, option in self.attribute_map.items():
            if alias in kwargs:
                kwargs.setdefault(option, kwargs.pop(alias))
        settings.update({option: kwargs.pop(option) for option in _OPTIONS if option in kwargs})
        if unknown := sorted(set(settings) - set(_OPTIONS)):
            raise ArgumentError(f"{unknown[0]}: is no option of an encoder, accepted are {', '.join(_OPTIONS)}")
        self.take(EncoderConfig(**settings))
        super().__init__(**kwargs)

    def take(self, config: EncoderConfig) -> None:
        """Hold the settings of ``config``."""
        for option, value in asdict(config).items():
            setattr(self, option, list(value) if isinstance(value, tuple) else value)  # as JSON gives them back

    def encoder_config(self) -> EncoderConfig:
        """The settings, checked, as :class:`hdxray_fast.models.encoder.Encoder` takes them."""
        return EncoderConfig(**{option: getattr(self, option) for option in _OPTIONS})

    @property
    def intermediate_size(self) -> int:
        """Width of the hidden layer of the MLPs."""
        return int(self.embed_dim * self.mlp_ratio)

    def to_dict(self) -> dict[str, Any]:
        """Contents of ``config.json``: the settings stand once, where :func:`hdxray_fast.load_model` reads them."""
        content = super().to_dict()
        settings = {option: content.pop(option) for option in _OPTIONS}
        return {**content, "format": ENCODER_FORMAT, "format_version": FORMAT_VERSION, "model": settings}


def _check_format(kind: object, version: object) -> None:
    if kind != ENCODER_FORMAT:
        raise CheckpointError(f"config: has format {kind!r}, this class reads {ENCODER_FORMAT!r}")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"config: has format_version {version!r}, this version reads {FORMAT_VERSION}")


def register() -> None:
    """Make the config known to ``AutoConfig``."""
    AutoConfig.register(MODEL_TYPE, HDXrayConfig, exist_ok=True)
