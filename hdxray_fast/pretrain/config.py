"""What pre-training is told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..errors import ConfigError
from ..images.contour_methods import ContourMethod
from ..models.presets import DECODER_SIZES, DEFAULT_DECODER, ENCODERS
from ..ops.mask_ratio import RATIO_INSIDE, RATIO_OUTSIDE
from ..training.config import TrainingConfig
from ..training.schedule import rise_of, warmup_constant, warmup_cosine

WSD_WARMUP = 500  # steps


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Pre-training of a contour-masked auto-encoder.

    Args:
        data: folder of radiographs (searched recursively), one image, a CSV manifest with an ``image`` column, a zip or
            tar archive, or several of these; a prepared data set, or the address of chunks in an object store
            (``s3://bucket/chest``).
        images: folder that relative paths in the manifest start from; the manifest's own by default.
        image_column: the column of the manifest's files, where it goes by none of the usual names.
        patient_column: likewise, that of the patients, by which radiographs are held out.
        cache: folder for canvases and contours computed once, and for chunks that are fetched, where it is one of each
            machine; ``<out>/cache`` by default.
        max_cache: MiB that fetched chunks may take on a machine; those that were not used for longest make room.
        model: encoder preset: ``vit_tiny_patch16``, and likewise small, base, large and huge; or with ``stem64``.
        weights: a pre-trained model to start from, of the same sizes: ``pretrained`` for the ``vit_tiny_patch16`` that
            comes with the package; an auto-encoder's folder, of which the decoder is taken too if it fits; or anything
            that ``create_encoder`` reads.
        schedule: ``cosine`` falls from the end of the rise to the last step; ``wsd`` stays at the peak and falls in the
            last steps only, and a run may be resumed with more ``steps``: it then goes on from before the fall.
        warmup_steps: steps of the rise, in place of ``warmup``'s share; with ``wsd`` 500 by default, since a share of
            the steps would move with them.
        decay: with ``wsd``, share of the steps in which the rate falls.
        decoder: ``cross`` predicts a share of the masked patches by cross-attention (CrossMAE); ``self`` is MAE's.
        decoder_embed_dim: width of the decoder; 512 by default, 192 for tiny encoders.
        decoder_depth: blocks of the decoder; 8 by default, 4 for tiny encoders.
        img_size: canvas side, pixels.
        contour: how the chest contour is found: ``network``, ``classical``, ``prior`` or ``rectangle``.
        strategy: how patches are masked: ``contour``, ``random``, ``rectangle`` or ``block``.
        ratio_inside: share of the patches inside the contour that are masked.
        ratio_outside: share of the patches outside the contour that are masked.
        predict: share of the masked patches that are predicted; 0.25 for ``cross`` and 1 for ``self`` by default.
        window: mask within a square of so many pixels' side, at another place of the canvas each time, and leave the
            rest out: a view costs a fraction, and attention is as dense as with all patches at lower ratios. For
            machines without a GPU; the whole canvas by default.
        norm_pix_loss: predict patches normalised by their own mean and deviation (MAE).
        augment: rotate, zoom, shift and re-expose the radiographs slightly; never mirrored.
        min_scale: with ``augment``, see radiographs at scales between this and 1 (the slight zoom comes on top), for an
            encoder that is to be used on smaller canvases too: 0.5 at 1280 pixels for those of 640; not less.
        lr: peak learning rate; by default 5e-4 times the square root of (images per step / 8), at most 2.4e-3.
        shuffle: ``global`` draws each epoch's order from all orders; with ``blocks`` each node (the processes of a
            machine) has runs of the set for an epoch, reads them ahead in large pieces, and shuffles within blocks: for
            sets on shared disks that do not fit into the page cache.
        shuffle_block: images of a block, at least; a node's page cache should hold two blocks.
        nodes: of which ``blocks`` are dealt out; by default as the launcher says (``LOCAL_WORLD_SIZE``).
        val_share: share of the patients that is held out (radiographs, where no patient is known; never one that has
            the pixels of another); 0 for none. Patients are those of a manifest's column, or of a prepared data set.
        val_every: steps between losses on what is held out, under masks that never change; there is one at the end.
        val_images: radiographs of it at most.
        picture_every: steps between pictures; 0 for the last step only. By default there is one with each checkpoint.
        keep_pictures: newest pictures to keep; of those before, the first from step 1, 2, 4, 8 and so on stays too. 0
            keeps all.
    """

    FREE_ON_RESUME: ClassVar[frozenset[str]] = TrainingConfig.FREE_ON_RESUME | {
        "cache",
        "max_cache",
        "picture_every",
        "keep_pictures",
        "nodes",
        "val_every",
        "val_images",
    }

    data: list[str] | str
    images: str | None = None
    image_column: str | None = None
    patient_column: str | None = None
    cache: str | None = None
    max_cache: int = 102400
    model: str = "vit_small_patch16"
    weights: str | None = None
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int | None = None
    decay: float = 0.1
    decoder: Literal["cross", "self"] = "cross"
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    img_size: int = 1280
    contour: ContourMethod = "network"
    strategy: Literal["contour", "random", "rectangle", "block"] = "contour"
    ratio_inside: float = RATIO_INSIDE
    ratio_outside: float = RATIO_OUTSIDE
    predict: float | None = None
    window: int | None = None
    norm_pix_loss: bool = True
    augment: bool = True
    min_scale: float = 1.0
    shuffle: Literal["global", "blocks"] = "global"
    shuffle_block: int = 131072
    nodes: int | None = None
    val_share: float = 0.0
    val_every: int = 500
    val_images: int = 256
    picture_every: int | None = None
    keep_pictures: int = 10

    def __post_init__(self) -> None:
        if not (self.data and self.out):
            raise ConfigError("data and out must both be named: the radiographs, and a folder for the run")
        names = self.sources
        object.__setattr__(self, "data", names if len(names) > 1 else names[0])  # a run has one way to call it
        super().__post_init__()

    @property
    def sources(self) -> list[str]:
        """What ``data`` names, be it one or several."""
        return [str(self.data)] if isinstance(self.data, str | os.PathLike) else list(map(str, self.data))

    def _check(self) -> None:
        super()._check()
        check_encoder_name(self.model)
        self._at_least(1, "decoder_embed_dim", "decoder_depth", "img_size", "shuffle_block", "nodes", "max_cache")
        self._at_least(0, "picture_every", "keep_pictures")
        self._at_least(1, "warmup_steps", "val_every", "val_images")
        patch_size = ENCODERS[self.model]["patch_size"]
        if self.window is not None and not 2 * patch_size <= self.window <= self.img_size:
            raise ConfigError(
                f"window: {self.window} is not accepted; give a side in pixels, from {2 * patch_size} (two patches) to "
                f"img_size ({self.img_size})"
            )
        if not 0.5 <= self.min_scale <= 1:
            raise ConfigError(f"min_scale: {self.min_scale} is not accepted; give a scale from 0.5 to 1")
        if self.min_scale < 1 and not self.augment:
            raise ConfigError("min_scale: it is a part of the augmentation; leave it out, or augment")
        self._share("ratio_inside", "ratio_outside", "decay")
        if self.schedule == "wsd" and self._rise + self._fall(self.steps) > self.steps:
            raise ConfigError(
                f"warmup_steps: wsd rises in {self._rise} and falls in {self._fall(self.steps)} of {self.steps} steps; "
                "give fewer warmup_steps, or more steps"
            )
        if self.predict is not None and not 0 < self.predict <= 1:
            raise ConfigError(f"predict: {self.predict} is not accepted; give a share above 0 and up to 1")
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"val_share: {self.val_share} is not accepted; give a share from 0 to below 1")
        if self.ratio_inside == 0 and self.ratio_outside == 0:
            raise ConfigError("ratio_inside and ratio_outside are both 0: nothing would be masked or learned")

    @property
    def _rise(self) -> int:
        if self.schedule == "cosine":
            return self.warmup_steps or rise_of(self.steps, self.warmup)
        return self.warmup_steps or WSD_WARMUP

    def _fall(self, steps: int) -> int:
        return max(1, round(self.decay * steps))

    def rate(self, step: int) -> float:
        if self.schedule == "wsd":
            return warmup_constant(step, self.steps, self._rise, self._fall(self.steps))
        return warmup_cosine(step, self.steps, self._rise)

    def common_steps(self, steps: int) -> int | None:
        return steps - self._fall(steps) if self.schedule == "wsd" else None

    def differences(self, other: dict) -> list[str]:
        found, before = super().differences(other), other.get("steps")
        steps = f"steps: {before!r} -> {self.steps!r}"
        if steps not in found:
            return found
        if self.schedule != "wsd" or other.get("schedule") != "wsd":
            why = "a cosine falls towards its last step from the start; only runs begun with schedule=wsd grow"
        elif type(before) is int and before < self.steps:
            return [line for line in found if line != steps]
        else:
            why = "may be raised, not lowered"
        return [f"{line}, {why}" if line == steps else line for line in found]

    @property
    def decoder_size(self) -> tuple[int, int]:
        """Width and depth of the decoder."""
        return decoder_size(self.model, self.decoder_embed_dim, self.decoder_depth)


def check_encoder_name(model: str) -> None:
    """Raise a ConfigError unless an encoder of that name can be built."""
    if model not in ENCODERS:
        raise ConfigError(f"model: got {model!r}, accepted are names of encoders to train anew: {', '.join(ENCODERS)}")


def decoder_size(model: str, width: int | None, depth: int | None) -> tuple[int, int]:
    """Width and depth of the decoder, filled in from the preset's."""
    usual = DECODER_SIZES.get(model, DEFAULT_DECODER)
    return width or usual[0], depth or usual[1]
