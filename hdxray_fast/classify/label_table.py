"""A table of radiographs with labels, patients and splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..data.splits import SPLITS
from ..terminal import counted, visible


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Radiographs with labels.

    Attributes:
        paths: ``N`` files.
        labels: ``[N, C] float32``: 1, 0, or NaN where a label is not known (left out of loss and metrics).
        classes: ``C`` names.
        patients: ``N`` patient ids; where none are known, a name of each image.
        splits: ``N`` of ``"train"``, ``"val"``, ``"test"``.
        multiclass: exactly one class of each image holds.
        notes: what was left out on reading, and why.
        fraction: of the training patients that were taken, see :func:`.label_fractions.take_fraction`.
        lines: row of the manifest that each row stands in, for messages (the header is row 1); empty where it is not
            known.
        patients_known: whether ``patients`` holds ids of people; otherwise every image counts as a patient of its own.
        origin: a hash of the manifest's patients, and how splits were drawn, to know the manifest again later.
    """

    paths: list[str]
    labels: np.ndarray
    classes: list[str]
    patients: list[str]
    splits: list[str]
    multiclass: bool = False
    notes: list[str] = field(default_factory=list)
    origin: dict = field(default_factory=dict)
    fraction: dict = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)
    patients_known: bool = True

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        """Counts alone: names of files and patients do not belong on every screen."""
        counts = {split: self.splits.count(split) for split in SPLITS if split in self.splits}
        splits = ", ".join(f"{count} {split}" for split, count in counts.items())
        return (
            f"LabelTable({size_in_words(len(self), self.patient_count)}, {splits}; classes: "
            f"{', '.join(map(visible, self.classes))})"
        )

    @property
    def patient_count(self) -> int | None:
        """How many patients there are; ``None`` where they are not known."""
        return len({*self.patients}) if self.patients_known else None

    def rows(self, chosen: Sequence[int] | np.ndarray) -> LabelTable:
        """The table of the chosen rows."""
        chosen = [int(i) for i in chosen]
        picked = {name: [getattr(self, name)[i] for i in chosen] for name in ("paths", "patients", "splits")}
        picked["lines"] = [self.lines[i] for i in chosen] if self.lines else []
        return replace(self, labels=self.labels[chosen], **picked)

    def place(self, row: int) -> str:
        """Where a row stands, in words that hold nothing of it but, where the manifest's row is not known, its file."""
        return f"row {self.lines[row]}" if self.lines else visible(self.paths[row])

    def split(self, name: str) -> LabelTable:
        """The rows of one split."""
        return self.rows([i for i, split in enumerate(self.splits) if split == name])

    def balance(self) -> list[dict]:
        """Per split and class: how many are positive, negative and not known."""
        lines = []
        for split in SPLITS:
            part = self.split(split)
            for column, name in enumerate(self.classes):
                values = part.labels[:, column]
                lines.append(
                    {
                        "split": split,
                        "class": name,
                        "positive": int((values == 1).sum()),
                        "negative": int((values == 0).sum()),
                        "unknown": int(np.isnan(values).sum()),
                    }
                )
        return lines


def size_in_words(images: int, patients: int | None) -> str:
    """``12 images of 9 patients``; ``12 images, patients not known`` where their number is ``None``."""
    whom = ", patients not known" if patients is None else f" of {counted(patients, 'patient')}"
    return counted(images, "image") + whom
