"""The encoder's settings as a transformers config, in the ``config.json`` that this package's own folders have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig

from ..errors import ArgumentError, CheckpointError
from ..models.encoder_config import DEFAULTS, EncoderConfig, preset
from ..models.mae import encoder_within
from ..weights.hub_files import AUTO_MAP, MODEL_TYPE
from ..weights.model_folders import ENCODER_FORMAT, FORMAT_VERSION, MAE_FORMAT

_OPTIONS = tuple(field.name for field in fields(EncoderConfig))
_HEAD_OPTIONS = ("head", "pool", "text_dim")  # what a head is built from; all else stands in classifier.json
MOST_LABELS = 1 << 20
_LABELS = ("num_labels", "id2label", "label2id", "problem_type", "classifier")


class HDXrayConfig(PretrainedConfig):
    """Settings of the models in :mod:`hdxray_fast.interop.hf`.

    The ``config.json`` of an auto-encoder gives those of its encoder.

    Args:
        name: preset that the other settings start from (see :func:`hdxray_fast.list_encoders`).
        classifier: of a classifier: fields of ``ClassifierConfig`` (``head``, ``pool``, ...) beside its classes, which
            are ``id2label``, and ``multiclass``, which ``problem_type`` says.
        out_features: of a backbone: names of the stages whose feature maps it gives, ``"stem"`` (the embedded patches)
            and ``"stage1"`` to ``"stage<depth>"`` (the output of a block); left out, the last.
        out_indices: the same as numbers, 0 for the stem.
        apply_layernorm: of a backbone: normalise the feature maps.
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

    def __init__(
        self,
        name: str = "vit_small_patch16",
        *,
        classifier: dict[str, Any] | None = None,
        out_features: Iterable[str] | None = None,
        out_indices: Iterable[int] | None = None,
        apply_layernorm: bool = True,
        **kwargs: Any,
    ) -> None:
        kind = kwargs.pop("format", ENCODER_FORMAT)
        _check_format(kind, kwargs.pop("format_version", FORMAT_VERSION))
        kwargs.pop("auto_map", None)  # for those who have not imported this class
        saved = kwargs.pop("model", {})
        self.holds_decoder = kind == MAE_FORMAT  # so do the weights beside it
        if self.holds_decoder:
            saved = asdict(encoder_within(saved))
        if isinstance(kwargs.get("num_labels"), int) and kwargs["num_labels"] > MOST_LABELS:  # each would get a name
            raise ArgumentError(f"num_labels: got {kwargs['num_labels']}, accepted are up to {MOST_LABELS}")
        settings = {**DEFAULTS, **preset(name, {}), **saved}
        for alias, option in self.attribute_map.items():
            if alias in kwargs:
                kwargs.setdefault(option, kwargs.pop(alias))
        settings.update({option: kwargs.pop(option) for option in _OPTIONS if option in kwargs})
        if unknown := sorted(set(settings) - set(_OPTIONS)):
            raise ArgumentError(f"{unknown[0]}: is no option of an encoder, accepted are {', '.join(_OPTIONS)}")
        self.take(EncoderConfig(**settings))
        self.classifier, self.apply_layernorm = classifier, apply_layernorm
        self.stages: list[int] | None = None
        if out_features is not None or out_indices is not None:
            self._choose(out_features, out_indices)
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

    # --- a backbone's stages: what transformers' BackboneConfigMixin has, which moved between its versions -----------
    @property
    def stage_names(self) -> list[str]:
        """Names of the stages: ``"stem"``, ``"stage1"``, ..., ``"stage<depth>"``."""
        return ["stem", *(f"stage{block}" for block in range(1, self.depth + 1))]

    @property
    def out_indices(self) -> list[int]:
        """Numbers of the stages whose maps a backbone gives."""
        return [self.depth] if self.stages is None else list(self.stages)

    @out_indices.setter
    def out_indices(self, indices: Iterable[int] | None) -> None:
        self._choose(None, indices)

    @property
    def out_features(self) -> list[str]:
        """Names of the stages whose maps a backbone gives."""
        return [self.stage_names[index] for index in self.out_indices]

    @out_features.setter
    def out_features(self, names: Iterable[str] | None) -> None:
        self._choose(names, None)

    def _choose(self, names: Iterable[str] | None, indices: Iterable[int] | None) -> None:
        known, count = self.stage_names, self.depth + 1
        by_name = by_index = None
        if names is not None:
            if foreign := [name for name in names if name not in known]:
                raise ArgumentError(f"out_features: got {foreign[0]!r}, accepted are stem and stage1 to {known[-1]}")
            by_name = [known.index(name) for name in names]
        if indices is not None:
            if foreign := [index for index in indices if not isinstance(index, int) or not -count <= index < count]:
                raise ArgumentError(f"out_indices: got {foreign[0]!r}, accepted are {-count} to {count - 1}")
            by_index = [index % count for index in indices]
        if by_name is not None and by_index is not None and by_name != by_index:
            raise ArgumentError(f"out_indices: got {indices}, which are not the stages of out_features ({names})")
        chosen = by_index if by_name is None else by_name
        if chosen is not None and (not chosen or chosen != sorted(set(chosen))):
            which = "out_indices" if by_name is None else "out_features"
            raise ArgumentError(f"{which}: got {chosen}, accepted are different stages in their order, at least one")
        self.stages = chosen

    @classmethod
    def register_for_auto_class(cls, auto_class: object = "AutoConfig") -> None:
        """Nothing: what is saved names its classes already, and no code of this package is copied into folders."""

    def to_dict(self) -> dict[str, Any]:
        """Contents of ``config.json``: the settings stand once, where :func:`hdxray_fast.load_model` reads them."""
        content = super().to_dict()
        settings = {option: content.pop(option) for option in _OPTIONS}
        del content["holds_decoder"]  # what is saved is the encoder
        if content.pop("stages") is not None:
            content["out_indices"] = self.out_indices
        if content["apply_layernorm"]:
            del content["apply_layernorm"]
        head = content.pop("classifier") or {}
        if head := {option: head[option] for option in _HEAD_OPTIONS if option in head}:
            content["classifier"] = head
        return {
            **content,
            "auto_map": AUTO_MAP,
            "format": ENCODER_FORMAT,
            "format_version": FORMAT_VERSION,
            "model": settings,
        }


# arguments of a model's from_pretrained that are the config's
CONFIG_WORDS = {*_OPTIONS, *_LABELS, *HDXrayConfig.attribute_map, "output_hidden_states", "return_dict"}


def _check_format(kind: object, version: object) -> None:
    if kind not in (ENCODER_FORMAT, MAE_FORMAT):
        raise CheckpointError(f"config: has format {kind!r}, this class reads {ENCODER_FORMAT!r} and {MAE_FORMAT!r}")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"config: has format_version {version!r}, this version reads {FORMAT_VERSION}")


def register() -> None:
    """Make the config known to ``AutoConfig``."""
    AutoConfig.register(MODEL_TYPE, HDXrayConfig, exist_ok=True)
