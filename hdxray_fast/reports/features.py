"""What a frozen encoder makes of the radiographs, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..data.radiograph_dataset import RadiographDataset
from ..errors import TrainingError
from ..files import make_folder, save_tensors, written_whole
from ..models.encoder import Tokens
from ..models.inference import one_late
from ..models.inputs import sent_batch
from ..ops.plan import MaskPlan
from ..regular_files import check_tensors, load_tensors
from ..training.batches import batches_of
from ..weights.fingerprint import weights_print
from .model import ReportModel
from .visual_tokens import ViewTokens

STANDARDISE_BY = 512  # images: enough for means and deviations
FORMAT = 1  # part of every name: raise it when the stored tensors change meaning


class FeatureStore:
    """Features of images, one safetensors file each.

    With ``pool="grid"`` the pooled tokens are kept (``values [K, D]``, ``known [K]``), otherwise those of all patches
    (``values [n, D]``, ``ids [n]``), from which learned queries pool. float16, where that holds them.

    Args:
        folder: made if needed.
        images: prepared radiographs, unaugmented.
        model: whose encoder is frozen.
        precision: what it computes in, as Accelerate calls it; features of another one are others.

    Attributes:
        weights: tells them apart from those of other encoders.
    """

    def __init__(self, folder: Path, images: RadiographDataset, model: ReportModel, precision: str = "no") -> None:
        self.folder, self.images = folder, images
        self.grid_size, self.patch_size = model.encoder.grid_size, model.encoder.patch_size
        self.pool, self.num_prefix = model.config.pool, model.encoder.num_prefix_tokens
        c = model.config
        settings = [FORMAT, c.keep, c.pool, c.visual_tokens if c.pool == "grid" else 0, model.encoder.margin]
        settings += [] if precision == "no" else [precision]
        self.weights = weights_print(model.encoder)
        self.made_by = json.dumps([self.weights, repr(model.encoder.config), *settings])

    def path(self, index: int) -> Path:
        """Where the features of image ``index`` are kept."""
        image = f"{self.images.images.key(index)}.npz"  # as the first caches called it
        key = hashlib.sha256(f"{self.made_by} {image}".encode()).hexdigest()[:32]
        return self.folder / f"{key}.safetensors"

    def fill(
        self,
        model: ReportModel,
        indices: Sequence[int],
        device: torch.device,
        autocast: Callable,
        on_done: Callable[[], None],
        batch_size: int = 4,
        workers: int = 0,
    ) -> int:
        """Compute what is missing; returns how many images that were.

        Images are read, and files written, while a GPU computes.

        Raises:
            TrainingError: the disk is full, or the folder cannot be written.
        """
        from safetensors import SafetensorError

        make_folder(self.folder, "cache")
        missing = [index for index in indices if not self._is_whole(index)]
        for _ in range(len(indices) - len(missing)):
            on_done()

        def compute(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
            with torch.no_grad(), autocast():
                inputs = model.inputs(sent_batch(batch, device))
                return self._computed(model, model.encoder.encode(**inputs), inputs["plan"])

        keys = [[(0, index) for index in missing[i : i + batch_size]] for i in range(0, len(missing), batch_size)]
        for batch, found in one_late(batches_of(self.images, keys, workers, device), compute, device):
            for index, tensors in zip(batch["index"].tolist(), self._stored(*found), strict=True):
                try:
                    with written_whole(self.path(index), durable=False) as temporary:
                        save_tensors(tensors, temporary)
                except (OSError, SafetensorError) as error:
                    raise TrainingError(
                        f"{self.path(index)}: cannot be written ({error}); what is done is kept, start again to go on"
                    ) from error
                on_done()
        return len(missing)

    def _computed(self, model: ReportModel, tokens: Tokens, plan: MaskPlan) -> tuple[Tensor, ...]:
        """What is kept of a batch, where it was computed."""
        if self.pool == "grid":
            return tuple(model.resample(tokens, plan))
        return *tokens, plan.keep_ids, plan.keep_cu_seqlens

    def _stored(self, values: Tensor, marks: Tensor, *ids: Tensor) -> list[dict[str, Tensor]]:
        """A batch of :meth:`_computed` on the host, as each of its images is kept."""
        if self.pool == "grid":
            return [{"values": _half(v), "known": k.clone()} for v, k in zip(values, marks, strict=True)]
        keep_ids, keep_bounds = ids[0], ids[1].tolist()
        return [
            {"values": _half(values[first:last]), "ids": keep_ids[kept:end].clone()}
            for (first, last), (kept, end) in zip(pairwise(marks.tolist()), pairwise(keep_bounds), strict=True)
        ]

    def _is_whole(self, index: int) -> bool:
        from safetensors import SafetensorError, safe_open

        try:
            check_tensors(self.path(index))
            with safe_open(self.path(index), "pt") as tensors:
                return bool(tensors.keys())
        except (SafetensorError, OSError):
            return False

    def load(self, index: int) -> dict[str, Tensor]:
        """Features of one image."""
        return load_tensors(self.path(index))

    def for_standardising(self, indices: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """``(values [n, D], known [n])`` of images, at most ``STANDARDISE_BY`` of them, evenly spread."""
        for index in indices[:: -(-len(indices) // STANDARDISE_BY)]:
            row = self.load(index)
            values = row["values"]
            yield values, row.get("known", torch.ones(len(values), dtype=torch.bool))

    def join(self, features: Sequence[dict[str, Tensor]]) -> dict[str, Tensor | int]:
        """Features of several images as one batch of tensors, and the number of patches of the one that has most."""
        values = [row["values"] for row in features]
        if self.pool == "grid":
            return {"values": torch.stack(values), "known": torch.stack([row["known"] for row in features])}
        sizes = torch.tensor([0, *(len(row["ids"]) for row in features)])
        return {
            "values": torch.cat(values),
            "ids": torch.cat([row["ids"] for row in features]),
            "cu_seqlens": sizes.cumsum(0).int(),
            "longest": int(sizes.max()),
        }

    def arguments(self, batch: dict) -> dict:
        """What :meth:`ReportModel.forward` takes of a batch that :meth:`join` made."""
        values = batch["values"].float()
        if self.pool == "grid":
            return {"view_tokens": ViewTokens(values, batch["known"])}
        cu_seqlens, longest = batch["cu_seqlens"], batch["longest"]
        none, empty = batch["ids"][:0], torch.zeros_like(cu_seqlens)
        plan = MaskPlan(batch["ids"], cu_seqlens, none, empty, self.grid_size, self.patch_size, longest, 0)
        prefix = self.num_prefix * torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device)
        return {"tokens": Tokens(values, cu_seqlens + prefix), "plan": plan}


def _half(values: Tensor) -> Tensor:
    half = values.half()
    return (half if bool(half.isfinite().all()) else values.float()).contiguous().clone()
