"""Studies to batches: radiographs or their features, which image is of which study, and the words to be taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.prepared.reading import PreparedSubset
from ..data.quarantine import Quarantined
from ..data.radiograph_dataset import RadiographDataset
from ..data.split_copies import keep_copies_together
from ..models.inputs import Looks
from .features import FeatureStore
from .model import ReportModel, pad_targets
from .studies import SHOWN, Study, counted
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


def ready_studies(
    studies: Sequence[Study], images: PreparedSubset, bad: Sequence[Quarantined], max_views: int
) -> tuple[list[ReadyStudy], list[str]]:
    """Studies with at least one readable radiograph, and a note for everything that was left out."""
    number = {path: i for i, path in enumerate(images.sources())}
    ready, without, fewer, more = [], [], [], []
    for study in studies:
        wanted = study.images[:max_views]
        found = tuple(number[path] for path in wanted if path in number)
        if not found:
            without.append(study.named)
            continue
        if len(found) < len(wanted):
            fewer.append(study.named)
        if len(study.images) > max_views:
            more.append(study.named)
        ready.append(ReadyStudy(study, found))
    notes = []
    if bad:
        shown = "; ".join(f"{item.path}: {item.reason}" for item in bad[:SHOWN]) + ("; ..." if len(bad) > SHOWN else "")
        notes.append(f"{len(bad)} radiographs cannot be read ({shown})")
    if without:
        notes.append(counted(without, "studies", "left out: none of their radiographs can be read"))
    if fewer:
        notes.append(counted(fewer, "studies", "go on without a radiograph that cannot be read"))
    if more:
        notes.append(counted(more, "studies", f"are read by their first {max_views} radiographs (max_views)"))
    return ready, notes


def copies_left_out(ready: dict[str, list[ReadyStudy]], thumbnails: np.ndarray, drawn: Sequence[str]) -> list[str]:
    """Remove studies of ``ready``, by split, so that no radiograph has a near duplicate across a drawn split.

    Args:
        ready: studies; what is left out is taken away here.
        thumbnails: of all prepared radiographs, ``[N, 48, 48] uint8``.
        drawn: splits that the studies' table does not give.

    Returns:
        Notes.
    """
    rows = [(split, row, number) for split, studies in ready.items() for row in studies for number in row.images]
    splits, studies = [split for split, _, _ in rows], [row.study for _, row, _ in rows]
    patients = [study.patient or study.id for study in studies]
    names = [study.id for study in studies]
    numbers = [number for _, _, number in rows]
    kept, notes = keep_copies_together(splits, patients, names, thumbnails[numbers], drawn)
    left = {studies[row].id for row in kept}
    for split in ready:
        ready[split] = [row for row in ready[split] if row.study.id in left]
    return notes


class StudyDataset(Dataset):
    """Map from ``(epoch, index)`` to one study: ``views`` (samples of its radiographs, or their features), ``target``,
    ``index``.

    Args:
        studies: what to draw from.
        images: the prepared radiographs, augmented as they should be.
        model: tells which patches of them are looked at; it is not kept.
        features: of a frozen encoder; left out, radiographs are given.
    """

    def __init__(
        self,
        studies: Sequence[ReadyStudy],
        images: RadiographDataset,
        model: ReportModel,
        features: FeatureStore | None = None,
    ) -> None:
        self.studies, self.images, self.features = list(studies), images, features
        self.looks = Looks.of(model.encoder, model.config.keep)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        numbers = self.studies[index].images
        read = (lambda i: self.images[epoch, i]) if self.features is None else self.features.load
        return {"views": [read(i) for i in numbers], "target": self.studies[index].target, "index": index}

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
