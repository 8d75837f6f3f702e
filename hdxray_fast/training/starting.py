"""What a training starts from where neither weights nor a preset is given."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ..errors import ConfigError
from .config import TrainingConfig
from .run_folder import begun_settings

Config = TypeVar("Config", bound=TrainingConfig)
USUAL = "vit_small_patch16"  # what configurations with weights have always had for a preset, which says nothing


def with_start(config: Config, preset: str, usual_weights: str) -> Config:
    """The settings with weights, or with the preset of an untrained encoder where that alone is given.

    Runs of releases that trained an untrained encoder where neither was given go on with it.

    Args:
        config: has ``weights``, and under the name ``preset`` that of an encoder.
        preset: ``"model"`` or ``"encoder"``.
        usual_weights: those where neither is given.

    Raises:
        ConfigError: both are given, and contradict each other.
    """
    given = getattr(config, preset)
    if config.weights is not None:
        if given not in (None, USUAL):
            raise ConfigError(f"{preset}: {given} is for a run without weights, which say what the encoder is")
        return replace(config, **{preset: USUAL})
    if given is not None:
        return config
    begun = begun_settings(config) or {"weights": usual_weights}
    if begun.get("weights") is None:
        return replace(config, **{preset: begun.get(preset, USUAL)})
    return replace(config, weights=usual_weights, **{preset: USUAL})
