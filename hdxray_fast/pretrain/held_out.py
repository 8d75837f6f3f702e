"""Radiographs that a pre-training never sees, by patient where they are known, and its loss on them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from ..data.listing import manifest_rows
from ..data.near_duplicates import united
from ..data.prepared.reading import PreparedSet, PreparedSubset, is_prepared
from ..data.radiograph_dataset import RadiographDataset
from ..data.splits import patient_place
from ..data.table_text import TABLE_FILES
from ..errors import ConfigError
from ..training.task import Run, Task
from .batches import PlannedBatch
from .config import PretrainConfig


def held_out_rows(
    patients: Sequence[str], pixels: Sequence[str], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Who is trained on, and who is held out.

    Images of one patient, and images of the same pixels, are never parted. Where a patient falls depends on the seed
    and its id (without one, on the pixels) alone, so that a set that grows keeps those it held out; but for one who is
    held out because nobody falls below ``share``, and for those who come to share pixels with one held out.

    Args:
        patients: id or hash of each image's patient, blank where it is not known.
        pixels: a hash of each image's pixels.
        share: of the patients that is held out; 0 for none.
        seed: of the draw.

    Returns:
        Rows to train on, and rows held out, ascending; at least one of each where ``share`` is not 0.

    Raises:
        ConfigError: there is only one patient.
    """
    if not share:
        return list(range(len(patients))), []
    looks = [f"pixels {same}" if same else f"row {row}" for row, same in enumerate(pixels)]
    names = [f"patient {patient}" if patient else look for patient, look in zip(patients, looks, strict=True)]
    first: dict[str, int] = {}  # row of each look
    for row, look in enumerate(looks):
        first.setdefault(look, row)
    groups = united(names, range(len(names)), [first[look] for look in looks])
    places: dict[str, float] = {}
    for name, group in set(zip(names, groups, strict=True)):  # that of whoever falls lowest
        places[group] = min(places.get(group, 1.0), patient_place(name, seed))
    if len(places) < 2:
        raise ConfigError(
            "val_share: all radiographs are one patient's, or have the same pixels; nobody can be held out"
        )
    order = sorted(places, key=places.get)
    out = {name for name in order[1:-1] if places[name] < share} | {order[0]}
    held = [row for row, group in enumerate(groups) if group in out]
    return sorted(set(range(len(names))) - set(held)), held


def patients_of(config: PretrainConfig, images: PreparedSet | PreparedSubset) -> list[str]:
    """The patient of each image: the hash that a prepared data set has, or what a manifest tells; blank if neither."""
    data = list(map(Path, config.sources))
    if is_prepared(data[0]):
        return [patient or "" for patient in images.column("patient").to_pylist()]
    known: dict[str, str] = {}
    for one in data:
        if one.suffix.lower() in TABLE_FILES:
            root = Path(config.images) if config.images else one.parent
            rows = manifest_rows(one, root, "data", config.image_column, config.patient_column)
            known |= {os.path.abspath(name): patient for name, patient in rows.items()}  # as a folder may spell it
    return [known.get(os.path.abspath(source), "") for source in images.sources()]


def looks_of(images: PreparedSet | PreparedSubset) -> list[str]:
    """What tells images of the same pixels: the hash of those that were read, or where a set does not have it, as one
    that is made for a store, the checksum of those that are kept, which by chance is another image's once in a while.
    """
    told = zip(images.hashes(), images.checksums().tolist(), strict=True)
    return [digest or f"crc {checksum:08x}" for digest, checksum in told]


class HeldOut:
    """The loss on radiographs that are held out: not augmented, each under a mask of its own that never changes.

    Args:
        config: of the run.
        images: held out; of more than ``config.val_images`` so many, at even distances.
        patch_size: pixels.
        predict: share of the masked patches that are predicted, as in training.
    """

    def __init__(
        self, config: PretrainConfig, images: PreparedSet | PreparedSubset, patch_size: int, predict: float
    ) -> None:
        count = min(config.val_images, len(images))
        self.rows = [place * len(images) // count for place in range(count)]
        self.samples = RadiographDataset(images, patch_size=patch_size)
        self._collate = PlannedBatch(config, predict, fixed=True)
        self._batch_size = config.batch_size

    def loss(self, training: Run, task: Task, model: nn.Module) -> float:
        """Mean over all predicted patches; every process must call this, and calls the model as often as the others."""
        accelerator = training.accelerator
        total = {"loss": 0.0, "count": 0.0}
        for batch, counts in self._batches(accelerator.process_index, accelerator.num_processes):
            moved = task.to_device(batch, accelerator.device)
            with accelerator.autocast():
                output = model(moved["pixels"], moved["plan"], moved["scale"], moved["shift"])
            if counts:
                total["loss"] = total["loss"] + output.loss.detach() * batch["predicted"]
                total["count"] += batch["predicted"]
        total = training.sum(total)
        return total["loss"] / total["count"]

    def _batches(self, rank: int, world: int) -> Iterator[tuple[dict, bool]]:
        """Batches of this process, and whether they count: who has fewer sees some again, which do not."""
        size = self._batch_size
        pieces = [self.rows[start : start + size] for start in range(0, len(self.rows), size)]
        for start in range(0, len(pieces), world):
            place = start + rank
            rows = pieces[place] if place < len(pieces) else pieces[start]
            yield self._collate([self.samples[0, row] for row in rows]), place < len(pieces)
