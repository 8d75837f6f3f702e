"""Labelled radiographs to batches for a classifier; a file that cannot be read any more is set aside, not fatal."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.augment import Augmentation, RandAugment
from ..data.prepared.finding import find_filtered
from ..data.prepared.reading import PreparedSet, PreparedSubset
from ..data.quarantine import append_quarantine, write_quarantine
from ..data.radiograph_dataset import RadiographDataset
from ..errors import ConfigError, TrainingError
from ..terminal import are
from .label_table import LabelTable


class LabelledRadiographs(Dataset):
    """Map from ``(epoch, index)`` to a training sample with its labels.

    Samples are those of :class:`.RadiographDataset` in 8 bits, for a classifier is taught what ``predict`` will show
    it, with ``labels [C] float32`` (NaN: not known), ``readable`` bool and ``error`` str.
    A sample that cannot be read is black, without any label, ``readable`` is False and ``error`` says why, so that it
    adds nothing to loss or gradient and the walk through the data stays what it would have been.

    Args:
        images: prepared radiographs, rows of ``labels``.
        labels: ``[N, C] float32``.
        drawn_by: of each image, the number that its augmentation is drawn by; its row by default.
        augmentation: ``None`` for the canvas as it is.
        patch_size, seed, views: as for :class:`hdxray_fast.data.radiograph_dataset.RadiographDataset`.
    """

    def __init__(
        self,
        images: PreparedSet | PreparedSubset,
        labels: np.ndarray,
        *,
        patch_size: int,
        drawn_by: Sequence[int] | None = None,
        augmentation: Augmentation | RandAugment | None = None,
        seed: int = 0,
        views: bool = False,
    ) -> None:
        self.drawn_by = range(len(images)) if drawn_by is None else drawn_by
        self.radiographs = RadiographDataset(
            images, patch_size=patch_size, augmentation=augmentation, seed=seed, views=views, bits=8
        )
        self.labels = np.asarray(labels, np.float32)
        if len(self.labels) != len(images):
            raise ValueError(f"{len(self.labels)} rows of labels for {len(images)} images")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key
        try:
            sample = self.radiographs.sample(epoch, index, int(self.drawn_by[index]))
            labels, error = self.labels[index], ""
        except Exception as found:  # whatever a damaged file or a lost disk raises: the run counts it and goes on
            sample = self._black()
            labels, error = np.full(self.labels.shape[1], np.nan, np.float32), f"{type(found).__name__}: {found}"
        own = {"index": torch.tensor(index), "draw": torch.tensor(epoch * len(self) + index)}
        readable = torch.tensor(not error)
        return {**sample, **own, "labels": torch.from_numpy(labels.copy()), "readable": readable, "error": error}

    def _black(self) -> dict[str, Tensor]:
        size, cells = self.radiographs.size, self.radiographs.size // self.radiographs.patch_size
        view = {}
        if self.radiographs.views:
            view = {"affine": torch.eye(3)[:2].clone(), "table": torch.arange(256, dtype=torch.uint8)}
        return {
            **view,
            "pixels": torch.zeros(1, size, size, dtype=torch.uint8),
            "inside": torch.zeros(cells, cells, dtype=torch.bool),
            "valid": torch.ones(cells, cells, dtype=torch.bool),
            "scale": torch.tensor(1.0),
            "shift": torch.tensor(0.0),
        }


@dataclass
class SetAside:
    """Files that could not be read, before or while training, and how many may be.

    Attributes:
        path: CSV file that lists them.
        total: images of the manifest.
        limit: share of ``total`` above which training stops.
        rows: ``(file, error, reason)``; those given at first are taken to be listed already.
    """

    path: Path
    total: int
    limit: float
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._known = {row[0] for row in self.rows}
        self._is_listed = False  # by this process

    def add(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Note files (each once), and add those that are new to the list.

        Raises:
            TrainingError: there are more than ``limit`` allows.
        """
        new = [row for row in dict.fromkeys(rows) if row[0] not in self._known]
        if new:
            self.rows += new
            self._known.update(row[0] for row in new)
            if self._is_listed:
                append_quarantine(self.path, new)
            else:  # a killed run may have left a list that ends otherwise
                self.write()
        self.check()

    def check(self) -> None:
        """Raise a TrainingError if there are more than ``limit`` allows."""
        if len(self.rows) > self.limit * self.total:
            name, _, reason = self.rows[-1]
            raise TrainingError(
                f"{len(self.rows)} of {self.total} images cannot be read, more than max_bad_share={self.limit:g} "
                f"allows; they are listed in {self.path}, the last is {name}: {reason}"
            )

    def write(self) -> None:
        """Write ``path,error,reason`` rows; none, and no file, if there are none."""
        write_quarantine(self.path, self.rows)
        self._is_listed = bool(self.rows)


def without_filtered(table: LabelTable, prepared: str | os.PathLike | None, listed: Sequence[str] = ()) -> LabelTable:
    """Without the images that a prepared data set left out on purpose when it was made, which a note tells.

    ``listed`` are all paths of the manifest, where the table has some of them.

    Raises:
        ConfigError: it left out all of them.
    """
    filtered = find_filtered(table.paths, PreparedSet(prepared), listed) if prepared else {}
    if not filtered:
        return table
    why = ", ".join(f"{count} {reason}" for reason, count in Counter(filtered.values()).most_common(4))
    told = f"{are(len(filtered), 'image')} left out, as {prepared} was prepared without: {why}"
    if len(filtered) == len(table):
        raise ConfigError(f"prepared: {prepared}: {told}")
    kept = table.rows([row for row, path in enumerate(table.paths) if path not in filtered])
    return replace(kept, notes=[*table.notes, told])


def table_of_readable(table: LabelTable, images: PreparedSubset) -> tuple[LabelTable, PreparedSubset]:
    """The rows of ``table`` whose images are among ``images``, and those images in its order."""
    place = {path: number for number, path in enumerate(images.sources())}
    table = table.rows([row for row, path in enumerate(table.paths) if path in place])
    return table, images.subset([place[path] for path in table.paths])
