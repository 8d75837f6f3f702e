"""Studies to batches: radiographs or their features, which image is of which study, and the words to be taught."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.prepared.reading import PreparedSubset
from ..data.quarantine import Quarantined
from ..data.radiograph_dataset import RadiographDataset
from ..data.ragged import Ragged
from ..data.split_copies import keep_copies_together
from ..models.inputs import Looks
from ..terminal import counted
from .features import FeatureStore
from .model import ReportModel, pad_targets
from .studies import SHOWN, Study, with_names
from .study_list import Studies
from .visual_tokens import Views


@dataclass(frozen=True)
class ReadyStudy:
    """A study whose radiographs can be read.

    Attributes:
        study: as it was listed.
        images: numbers of its radiographs among all prepared ones.
        target: token ids to be taught; empty where nothing is.
    """

    study: Study
    images: tuple[int, ...]
    target: tuple[int, ...] = ()


class ReadyStudies(Sequence[ReadyStudy]):
    """Many of them; what a worker needs of them, numbers and targets, is there without their texts.

    Args:
        studies: as they were listed.
        numbers: of the radiographs of each.
        targets: of each; left out, nothing is taught.
    """

    def __init__(self, studies: Studies, numbers: Ragged, targets: Ragged | None = None) -> None:
        self.studies, self.numbers, self.targets = studies, numbers, targets or Ragged(() for _ in studies)

    def __len__(self) -> int:
        return len(self.studies)

    @overload
    def __getitem__(self, place: int) -> ReadyStudy: ...
    @overload
    def __getitem__(self, place: slice) -> ReadyStudies: ...
    def __getitem__(self, place: int | slice) -> ReadyStudy | ReadyStudies:
        if isinstance(place, slice):
            return self.rows(range(len(self))[place])
        place = range(len(self))[place]
        return ReadyStudy(self.studies[place], self.numbers[place], self.targets[place])

    def rows(self, rows: Sequence[int]) -> ReadyStudies:
        """Some of them."""
        numbers, targets = (Ragged(held[row] for row in rows) for held in (self.numbers, self.targets))
        return ReadyStudies(self.studies.rows(rows), numbers, targets)

    def with_targets(self, targets: Iterable[Iterable[int]]) -> ReadyStudies:
        """The same, with these token ids to be taught."""
        return ReadyStudies(self.studies, self.numbers, Ragged(targets))


def ready_studies(
    studies: Studies, images: PreparedSubset, bad: Sequence[Quarantined], max_views: int
) -> tuple[ReadyStudies, list[str]]:
    """Studies with at least one readable radiograph, and a note for everything that was left out."""
    number = {path: i for i, path in enumerate(images.sources())}
    rows, numbers = [], Ragged()
    without, fewer, more = [], [], []
    for row, study in enumerate(studies):
        wanted = study.images[:max_views]
        found = [number[path] for path in wanted if path in number]
        if not found:
            without.append(study.named)
            continue
        if len(found) < len(wanted):
            fewer.append(study.named)
        if len(study.images) > max_views:
            more.append(study.named)
        rows.append(row)
        numbers.append(found)
    notes = []
    if bad:
        shown = "; ".join(f"{item.path}: {item.reason}" for item in bad[:SHOWN]) + ("; ..." if len(bad) > SHOWN else "")
        notes.append(f"{counted(len(bad), 'radiograph')} unreadable ({shown})")
    if without:
        notes.append(with_names(without, "study", "left out: none of their radiographs can be read"))
    if fewer:
        notes.append(with_names(fewer, "study", "read without a radiograph that cannot be read"))
    if more:
        notes.append(with_names(more, "study", f"read by the first {max_views} radiographs alone (max_views)"))
    return ReadyStudies(studies.rows(rows), numbers), notes


def copies_left_out(ready: dict[str, ReadyStudies], thumbnails: np.ndarray, drawn: Sequence[str]) -> list[str]:
    """Remove studies of ``ready``, by split, so that no radiograph has a near duplicate across a drawn split.

    Args:
        ready: studies; what is left out is taken away here.
        thumbnails: of all prepared radiographs, ``[N, 48, 48] uint8``.
        drawn: splits that the studies' table does not give.

    Returns:
        Notes.
    """
    rows = [
        (split, row.study.patient or row.study.id, row.study.id, number)
        for split, studies in ready.items() for row in studies for number in row.images
    ]  # fmt: skip
    splits, patients, names, numbers = ([row[cell] for row in rows] for cell in range(4))
    kept, notes = keep_copies_together(splits, patients, names, thumbnails[numbers], drawn)
    left = {names[row] for row in kept}
    for split, studies in ready.items():
        ids = studies.studies.column("id")
        ready[split] = studies.rows([row for row, name in enumerate(ids) if name in left])
    return notes


class StudyDataset(Dataset):
    """Map from ``(epoch, index)`` to one study: ``views`` (samples of its radiographs, or their features), ``target``,
    ``index``.

    Args:
        studies: what to draw from; their texts are not kept, which no worker needs.
        images: the prepared radiographs, augmented as they should be.
        model: tells which patches of them are looked at; it is not kept.
        features: of a frozen encoder; left out, radiographs are given.
    """

    def __init__(
        self,
        studies: ReadyStudies,
        images: RadiographDataset,
        model: ReportModel,
        features: FeatureStore | None = None,
    ) -> None:
        self.numbers, self.targets = studies.numbers, studies.targets
        self.images, self.features = images, features
        self.looks = Looks.of(model.encoder, model.config.keep)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        numbers = self.numbers[index]
        read = (lambda i: self.images[epoch, i]) if self.features is None else self.features.load
        return {"views": [read(i) for i in numbers], "target": self.targets[index], "index": index}

    def collate(self, samples: Sequence[dict]) -> dict:
        """One batch: ``targets [B, T]`` and the number of their ``words``, ``index``, ``views`` (see :class:`Views`).

        And the radiographs, with the ``plan`` of the patches to look at (``None`` for all), or their features: all that
        a step would otherwise have to ask a GPU for.
        """
        views = Views.of_counts([len(sample["views"]) for sample in samples])
        rows = [row for sample in samples for row in sample["views"]]
        if self.features is not None:
            joined = self.features.join(rows)
        else:
            joined = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            joined.pop("index"), joined.pop("draw")
            joined["plan"] = self.looks.plan(joined["pixels"], joined.pop("inside"), joined.pop("valid"))
        return {
            "targets": pad_targets([list(sample["target"]) for sample in samples]),
            "words": sum(len(sample["target"]) for sample in samples),
            "views": views,
            "index": torch.tensor([sample["index"] for sample in samples]),
            **joined,
        }
