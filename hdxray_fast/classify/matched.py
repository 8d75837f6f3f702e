"""Features of a table on disk, brought to the images that labels are known of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..data.split_copies import keep_copies_together
from ..errors import TrainingError
from ..images.perceptual_hash import SIDE
from .label_table import LabelTable
from .labels import check_table, refuse_duplicates


@dataclass
class Matched:
    """Images that have features, in the order of the labels.

    Attributes:
        table: labels.
        features: ``[N, D] float32``.
        hashes: of the stored pixels.
        thumbnails: ``[N, 48, 48] uint8``; ``None`` if some have none.
        strange: how many have none.
        notes: on near duplicates.
    """

    table: LabelTable
    features: np.ndarray
    hashes: list[str]
    thumbnails: np.ndarray | None = None
    strange: int = 0
    notes: list[str] = field(default_factory=list)

    def rows(self, kept: list[int]) -> Matched:
        """Some of them."""
        pictures = None if self.thumbnails is None else self.thumbnails[kept]
        hashes = [self.hashes[row] for row in kept]
        return Matched(self.table.rows(kept), self.features[kept], hashes, pictures, self.strange, self.notes)


def match_features(table: LabelTable, rows: dict, source: str) -> Matched:
    """The images that have features, without near duplicates across drawn splits.

    Args:
        table: labels.
        rows: as :func:`.read_features` gives them.
        source: of the labels, for errors.

    Raises:
        ConfigError: an image is in two splits, or a class cannot be learned from what is there.
        TrainingError: none of the images, or of a split, could be read.
    """
    place = {path: number for number, path in enumerate(rows["path"])}
    readable = [i for i, path in enumerate(table.paths) if path in place]
    if not readable:
        raise TrainingError(f"{source}: none of the {len(table)} images could be read")
    table = table.rows(readable)
    order = [place[path] for path in table.paths]
    hashes = [rows["provenance_id"][i] for i in order]
    refuse_duplicates(table, hashes, source)
    for split in ("train", "val", "test"):
        if split not in table.splits:
            raise TrainingError(f"{source}: none of the images of {split!r} could be read")
    pictures = [rows["thumbnail"][i] for i in order]
    found = Matched(table, rows["feature"][order], hashes, strange=pictures.count(None))
    if not found.strange:
        found.thumbnails = np.frombuffer(b"".join(pictures), np.uint8).reshape(-1, SIDE, SIDE)
        drawn = table.origin.get("drawn", ())
        kept, notes = keep_copies_together(table.splits, table.patients, table.paths, found.thumbnails, drawn)
        found.notes += notes
        found = found.rows(kept)
    check_table(found.table, source)
    return found
