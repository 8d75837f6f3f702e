"""What a pre-training starts from, where it does not start anew: a pre-trained model of the same sizes."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from ..models.encoder import Encoder
from ..models.encoder_config import preset
from ..models.mae import MaskedAutoencoder, create_mae
from ..weights.create import create_encoder
from ..weights.model_folders import CONFIG_FILE, load_model
from ..weights.shipped import DEFAULT, PRETRAINED
from .config import PretrainConfig

SIZES = ("stem", "patch_size", "embed_dim", "depth", "num_heads")
# what an auto-encoder's encoder always has; how pixels are looked at is the pre-training's own
FIXED = {"class_token": True, "reg_tokens": 0, "fc_norm": False}
LOADED = "loaded"  # what becomes of a decoder that is taken
OWN = ("img_size", "in_chans", "keep", "margin", "pool", "contour", "normalisation")


def new_model(config: PretrainConfig, **overrides: int | float | str | None) -> MaskedAutoencoder:
    """The auto-encoder that ``config`` describes, with other options of its encoder."""
    width, depth = config.decoder_size
    return create_mae(
        config.model,
        decoder=config.decoder,
        img_size=config.img_size,
        norm_pix_loss=config.norm_pix_loss,
        decoder_embed_dim=width,
        decoder_depth=depth,
        contour=config.contour,
        **overrides,
    )


def started_model(config: PretrainConfig) -> tuple[MaskedAutoencoder, str]:
    """The auto-encoder of ``config`` with the encoder of its ``weights``, and their decoder if it is of the same kind.

    Returns:
        The model, and what became of the weights, in lines.

    Raises:
        ConfigError: they are of an encoder of other sizes, or of a kind that no auto-encoder has.
        CheckpointError: they cannot be read.
    """
    name = DEFAULT if config.weights == PRETRAINED else None  # with all of its blocks
    encoder = create_encoder(name, weights=config.weights, img_size=config.img_size, in_chans=1)
    overrides = _options(encoder, config)
    model = new_model(config, **overrides)
    model.encoder.load_state_dict(encoder.state_dict())
    decoder, report = _fill_decoder(model, config), encoder.load_report
    if decoder.startswith(LOADED):  # what an encoder leaves out is in the line below
        report = replace(report, left_out=[name for name in report.left_out if not name.startswith("decoder.")])
    return model, f"{report}\n  decoder     {decoder}"


def _options(encoder: Encoder, config: PretrainConfig) -> dict:
    """Options of the weights' encoder that are not those of the preset."""
    found, wanted = encoder.config, preset(config.model, {})
    other = [
        f"{name} {getattr(found, name)}, not {wanted[name]}" for name in SIZES if getattr(found, name) != wanted[name]
    ]
    if other:
        raise ConfigError(
            f"weights: {config.weights} is no {config.model} ({'; '.join(other)}); give the model it is of"
        )
    for name, value in FIXED.items():
        if getattr(found, name) != value:
            raise ConfigError(
                f"weights: {config.weights} has {name}={getattr(found, name)}, and the encoder of an auto-encoder has "
                f"{value}"
            )
    return {
        field.name: getattr(found, field.name)
        for field in fields(found)
        if field.name not in (*SIZES, *FIXED, *OWN) and getattr(found, field.name) != field.default
    }


def _fill_decoder(model: MaskedAutoencoder, config: PretrainConfig) -> str:
    """Take the weights' decoder if it is there and of the same kind; says what became of it."""
    folder = Path(config.weights)
    if not (folder / CONFIG_FILE).is_file():
        return "begins anew: the weights are no folder of this package"
    found = load_model(folder)
    if not isinstance(found, MaskedAutoencoder):
        return "begins anew: the folder holds an encoder alone"
    kinds = ("decoder", "decoder_embed_dim", "decoder_depth", "decoder_num_heads", "norm_pix_loss")
    ours, theirs = ({name: one.config[name] for name in kinds} for one in (model, found))
    ours["decoder_num_heads"] = ours["decoder_num_heads"] or theirs["decoder_num_heads"]
    other = [f"{name} {theirs[name]}, not {ours[name]}" for name in kinds if ours[name] != theirs[name]]
    if other:
        return f"begins anew: the weights have {'; '.join(other)}"
    tensors = {name: tensor for name, tensor in found.decoder.state_dict().items() if not name.endswith("pos_embed")}
    lacking = model.decoder.load_state_dict(tensors, strict=False)
    if wrong := [name for name in lacking.missing_keys if not name.endswith("pos_embed")]:
        raise CheckpointError(f"{folder}: its decoder lacks {wrong[0]}")
    return f"{LOADED}, {len(tensors)} tensors"
