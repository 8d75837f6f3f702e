"""R2Gen's own data: which table is its ``annotation.json``, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError
from .predictions import Prediction
from .studies import Study

# Entries of the two files that R2Gen's authors publish. Those of IU X-ray are studies; those of MIMIC-CXR are images,
# each with the report of its study, so that a study with two images counts twice there.
SIZES = {
    "iu-xray": {"train": 2069, "val": 296, "test": 590},
    "mimic-cxr": {"train": 270790, "val": 2130, "test": 3858},
}
COUNTS = ("studies", "images")


def own_data_set(layout: str, listed: Mapping[str, int]) -> str | None:
    """``"iu-xray"`` or ``"mimic-cxr"`` for R2Gen's own file, told by its sizes; ``None`` for any other table."""
    return next((name for name, sizes in SIZES.items() if layout == "r2gen" and dict(listed) == sizes), None)


def check_count(count: str) -> str:
    """``count``, or a ConfigError if it is none of ``COUNTS``."""
    if count not in COUNTS:
        raise ConfigError(f"count: got {count!r}, accepted are {', '.join(map(repr, COUNTS))}")
    return count


def per_image(studies: Sequence[Study]) -> list[Study]:
    """A study for each radiograph, with the report of the whole: ``s50414267/<name of the image's file>``."""
    return [
        replace(study, id=f"{study.id}/{Path(image).stem}", images=(image,), part_of=study.id)
        for study in studies
        for image in study.images
    ]


def text_per_image(made: Sequence[Prediction], studies: Sequence[Study]) -> list[Prediction]:
    """Texts of whole studies once for each of their radiographs; texts of radiographs as they are."""
    images = {study.id: [part.id for part in per_image([study])] for study in studies}
    return [replace(row, id=name) for row in made for name in images.get(row.id, [row.id])]
