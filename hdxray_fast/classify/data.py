"""Labelled radiographs to batches for a classifier; a file that cannot be read any more is set aside, not fatal."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.augment import Augmentation, RandAugment
from ..data.prepared.index import read_set_aside
from ..data.prepared.reading import PreparedSet, PreparedSubset
from ..data.prepared.sources import JOIN
from ..data.quarantine import append_quarantine, write_quarantine
from ..data.radiograph_dataset import RadiographDataset
from ..errors import ConfigError, TrainingError
from .label_table import LabelTable


def find_prepared(paths: Sequence[str], images: PreparedSet, listed: Sequence[str] = ()) -> PreparedSubset:
    """The images of ``paths`` that a prepared data set holds, in their order and called as they are.

    A path and a source are the same if they name one place on the disk; failing that, if their last names are equal and
    nothing else is called so: no other path, and no other source, be it one that the data set set aside (data sets that
    were moved, or prepared from archives). No image is ever that of two paths.

    Args:
        paths: images wanted.
        images: the data set.
        listed: all paths of the manifest, where ``paths`` are some of them.

    Raises:
        ConfigError: two of the paths name one file.
    """
    sources = images.sources()
    place = {os.path.abspath(source): row for row, source in enumerate(sources)}
    called = {_last_name(source): row for row, source in enumerate(sources)}
    holders = Counter(map(_last_name, {*sources, *read_set_aside(images.folder)}))
    wanted = Counter(map(_last_name, {os.path.abspath(path) for path in (*paths, *listed)}))
    taken: dict[int, str] = {}
    for path in paths:
        name = _last_name(path)
        row = place.get(os.path.abspath(path), -1)
        if row < 0 and holders[name] == wanted[name] == 1:
            row = called.get(name, -1)
            row = -1 if row >= 0 and _differ(path, sources[row]) else row
        if row >= 0 and taken.setdefault(row, path) != path:
            raise ConfigError(f"data: {taken[row]} and {path} are one file; list each image once")
    return images.subset(list(taken), list(taken.values()))


def _differ(path: str, source: str) -> bool:
    """Whether two files are both there and not equally long: then neither is the other, moved."""
    try:
        return os.path.getsize(path) != os.path.getsize(source)
    except OSError:
        return False


def _last_name(path: str) -> str:
    return re.split(rf"[/\\]|{JOIN}", path)[-1]


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
        """Write ``path,error,reason`` rows, also if there are none."""
        write_quarantine(self.path, self.rows)
        self._is_listed = True


def table_of_readable(table: LabelTable, images: PreparedSubset) -> tuple[LabelTable, PreparedSubset]:
    """The rows of ``table`` whose images are among ``images``, and those images in its order."""
    place = {path: number for number, path in enumerate(images.sources())}
    table = table.rows([row for row, path in enumerate(table.paths) if path in place])
    return table, images.subset([place[path] for path in table.paths])
