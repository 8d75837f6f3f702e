"""Which radiographs that reports were written on a model was trained on; kept beside the reports, for their scores."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.csv_cells import read_table, write_table
from ..data.radiographs import Radiograph
from ..data.seen import Seen
from ..errors import ConfigError
from ..files import written_whole
from ..images.perceptual_hash import no_thumbnails
from ..regular_files import open_regular
from .studies import Study

KNOWN_FILE = "known_images.csv"  # beside predictions
WAYS = ("pixels", "near")
COLUMNS = ("study", "image", "known_by")
NAMES = ("study", "image")  # a study may be called as its file


@dataclass
class ReadImages:
    """The radiographs that were read, as far as it takes to tell whether a model knows them.

    Attributes:
        studies: of each, the id of its study.
        names: of each, as it was given.
        hashes: of its stored pixels.
        thumbnails: ``[48, 48] uint8`` each.
        views: ``"frontal"``, ``"lateral"``, ``"other"``, or ``""`` (not known).
    """

    studies: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    thumbnails: list[np.ndarray] = field(default_factory=list)
    views: list[str] = field(default_factory=list)

    def add(self, study: Study, images: Sequence[Radiograph]) -> None:
        """Take in the radiographs of a study."""
        self.studies += [study.part_of or study.id] * len(images)
        self.names += [image.source for image in images]
        self.hashes += [image.provenance_id for image in images]
        self.thumbnails += [image.thumbnail for image in images]
        self.views += [image.view for image in images]

    def known_to(self, seen: Seen) -> tuple[list[tuple[str, str, str]], list[str]]:
        """Study, name and ``"pixels"`` or ``"near"`` of each that training or validation used; and notes."""
        pictures = np.stack(self.thumbnails) if self.thumbnails else no_thumbnails()
        found = seen.overlap(None, self.hashes, pictures, "radiographs")
        known = [
            (self.studies[row], self.names[row], way) for way, rows in found.by.items() for row in np.flatnonzero(rows)
        ]
        limits = f"the model: {seen.limits}" if seen.limits else ""
        return known, [note for note in (limits, found.describe(self.names)) if note]


def write_known_images(path: Path, known: Sequence[tuple[str, str, str]]) -> None:
    """A CSV with a row for each radiograph that training or validation used: what :meth:`ReadImages.known_to` gives."""
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        write_table(stream, COLUMNS, known, names=NAMES)


def read_known_images(path: Path) -> dict[str, set[str]] | None:
    """The ids of the studies that a model has seen images of and the paths of these, by how they are known; ``None``
    without such a file.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not os.path.lexists(path):
        return None
    known: dict[str, set[str]] = {way: set() for way in WAYS}
    try:
        with open_regular(path, "r", newline="", encoding="utf-8-sig") as stream:
            for row in read_table(stream, NAMES, COLUMNS):
                known[row["known_by"]] |= {row["study"], os.path.abspath(row["image"])}
    except (OSError, UnicodeError, csv.Error, KeyError):  # the last holds a cell
        raise ConfigError(f"{path}: is damaged; remove it to go without, or generate again") from None
    return known
