"""Whose radiographs weights know that began as an encoder of the package: what its card says of them goes along."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from ..regular_files import read_text

CARD_FILE = "README.md"


def home_of_shipped() -> Path:
    """The folder of the package with a folder for each encoder that comes with it."""
    return Path(str(resources.files("hdxray_fast").joinpath("weights/pretrained")))


def credits_of(began_from: str | None) -> str:
    """A section of a model card, Markdown: source, terms and citation of the weights that a training began from.

    Args:
        began_from: of an :class:`.EncoderConfig`.

    Returns:
        Nothing for weights that began otherwise.
    """
    card = home_of_shipped() / began_from / CARD_FILE if began_from else None
    if card is None or not card.is_file():
        return ""
    data = re.search(r"^## Data\n\n(.+?)(?=\n\n|\Z)", read_text(card, None), re.DOTALL | re.MULTILINE)
    return f"""## Weights it began from

The encoder {began_from} that comes with hdxray_fast, pre-trained on:
{data[1] if data else "what its own card says"}
Whoever passes these weights on, also trained further, names them likewise.

"""
