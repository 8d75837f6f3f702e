"""What a frozen encoder makes of the radiographs, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.radiograph_dataset import RadiographDataset
from ..errors import TrainingError
from ..files import make_folder, save_tensors, written_whole
from ..models.encoder import Tokens
from ..ops.plan import MaskPlan
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
        images: radiographs in a run's cache, unaugmented.
        model: whose encoder is frozen.

    Attributes:
        weights: tells them apart from those of other encoders.
    """

    def __init__(self, folder: Path, images: RadiographDataset, model: ReportModel) -> None:
        self.folder, self.images = folder, images
        self.grid_size, self.patch_size = model.encoder.grid_size, model.encoder.patch_size
        self.pool, self.num_prefix = model.config.pool, model.encoder.num_prefix_tokens
        c = model.config
        settings = [FORMAT, c.keep, c.pool, c.visual_tokens if c.pool == "grid" else 0, model.encoder.margin]
        self.weights = weights_print(model.encoder)
        self.made_by = json.dumps([self.weights, repr(model.encoder.config), *settings])

    def path(self, index: int) -> Path:
        """Where the features of image ``index`` are kept."""
        image = f"{self.images.images.keys[index]}.npz"  # as the first caches called it
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
    ) -> int:
        """Compute what is missing; returns how many images that were.

        Raises:
            TrainingError: the disk is full, or the folder cannot be written.
        """
        from safetensors import SafetensorError

        make_folder(self.folder, "cache")
        missing = [index for index in indices if not self._is_whole(index)]
        for _ in range(len(indices) - len(missing)):
            on_done()
        for first in range(0, len(missing), batch_size):
            chunk = missing[first : first + batch_size]
            batch = stacked([self.images[0, index] for index in chunk], device)
            with torch.no_grad(), autocast():
                inputs = model.inputs(batch)
                tokens = model.encoder.encode(**inputs)
                stored = self._store(model, tokens, inputs["plan"])
            for index, tensors in zip(chunk, stored, strict=True):
                try:
                    with written_whole(self.path(index), durable=False) as temporary:
                        save_tensors(tensors, temporary)
                except (OSError, SafetensorError) as error:
                    raise TrainingError(
                        f"{self.path(index)}: cannot be written ({error}); what is done is kept, start again to go on"
                    ) from error
                on_done()
        return len(missing)

    def _store(self, model: ReportModel, tokens: Tokens, plan: MaskPlan) -> list[dict[str, Tensor]]:
        if self.pool == "grid":
            pooled = model.resample(tokens, plan)
            return [{"values": _half(v), "known": k.cpu()} for v, k in zip(pooled.values, pooled.known, strict=True)]
        bounds, ids = tokens.cu_seqlens.tolist(), plan.keep_cu_seqlens.tolist()
        return [
            {
                "values": _half(tokens.values[bounds[i] : bounds[i + 1]]),
                "ids": plan.keep_ids[ids[i] : ids[i + 1]].cpu().clone(),
            }
            for i in range(plan.batch_size)
        ]

    def _is_whole(self, index: int) -> bool:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(index), "pt") as tensors:
                return bool(tensors.keys())
        except (SafetensorError, OSError):
            return False

    def load(self, index: int) -> dict[str, Tensor]:
        """Features of one image."""
        from safetensors.torch import load_file

        return load_file(self.path(index))

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
    half = values.detach().cpu().half()
    return (half if bool(half.isfinite().all()) else values.detach().cpu().float()).contiguous().clone()


def stacked(samples: Sequence[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """Samples of :class:`hdxray_fast.data.radiograph_dataset.RadiographDataset` as one batch."""
    return {name: torch.stack([sample[name] for sample in samples]).to(device) for name in samples[0]}
