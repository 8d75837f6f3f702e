"""Encoders that come with the package, pre-trained by it; each has a model card beside its weights."""

from __future__ import annotations

from pathlib import Path

from .. import regular_files
from ..errors import ArgumentError
from ..models.positions import sincos_positions
from .credits import CARD_FILE, home_of_shipped
from .model_folders import CONFIG_FILE, MODEL_FILE, read_tensors
from .source_files import Source

PRETRAINED = "pretrained"  # what weights are called that come with the package
DEFAULT = "vit_tiny_patch16"
READ_BEST = "read_best"  # in its config.json: as many blocks as its features are read best off


def pretrained_encoders() -> list[str]:
    """Names of encoders whose weights come with the package."""
    return sorted(folder.name for folder in home_of_shipped().iterdir() if (folder / MODEL_FILE).is_file())


def pretrained_card(name: str | None = None) -> Path:
    """The model card: what the encoder was trained on and how, whom to name, what it was measured to be worth."""
    return _folder(name) / CARD_FILE


def blocks_read_best(name: str | None = None) -> int:
    """How many blocks, the first ones, are taken where the encoder is not named."""
    return regular_files.read_json(_folder(name) / CONFIG_FILE)[READ_BEST]


def shipped_size(name: str | None = None) -> int:
    """Canvas side that the encoder was trained for, pixels."""
    return regular_files.read_json(_folder(name) / CONFIG_FILE)["model"]["img_size"][0]


def read_pretrained(name: str | None = None) -> Source:
    """Weights of an encoder that come with the package, in float16 but for the positions, which are computed.

    Args:
        name: of the encoder, for all of its blocks; left out, of the smallest those that are read best.

    Raises:
        ArgumentError: there are none of that encoder; the message says of which there are.
        CheckpointError: the package's files are damaged.
    """
    folder = _folder(name)
    told = regular_files.read_json(folder / CONFIG_FILE)
    settings = told["model"] | ({} if name else {"depth": told[READ_BEST]})
    tensors = read_tensors(folder / MODEL_FILE)
    grid = tuple(side // settings["patch_size"] for side in settings["img_size"])
    tensors["pos_embed"] = sincos_positions(settings["embed_dim"], grid)
    settings = {option: tuple(value) if isinstance(value, list) else value for option, value in settings.items()}
    settings["began_from"] = folder.name
    return Source(f"{PRETRAINED} ({folder.name})", tensors, settings=settings, own=True)


def _folder(name: str | None) -> Path:
    name = DEFAULT if name is None else name
    if name not in pretrained_encoders():
        raise ArgumentError(
            f"weights: no pre-trained {name} comes with the package; there is {', '.join(pretrained_encoders())}"
        )
    return home_of_shipped() / name
