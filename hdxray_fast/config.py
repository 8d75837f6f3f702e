"""One typed object a task configures it from Python, YAML and the command line alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError

# What may change between a run and its resumption without changing a single loss value. The batch is free as long as
# the images per step stay the same, which the training loop checks.
FREE_ON_RESUME = frozenset(
    {
        "out",
        "cache",
        "resume",
        "workers",
        "batch_size",
        "grad_accum",
        "save_every",
        "keep_checkpoints",
        "keep_every",
        "timeout",
        "shard",
        "checkpoint_activations",
        "max_bad_share",
        "bootstraps",
        "picture_every",
        "tensorboard",
        "wandb",
        "threads",
    }
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training run is told, whatever it trains.

    Args:
        out: folder for checkpoints, logs and pictures.
        steps: optimizer steps.
        batch_size: images per process and forward pass.
        grad_accum: forward passes per optimizer step.
        lr: peak learning rate.
        weight_decay: of AdamW, on matrices only.
        beta2: second moment decay of AdamW (the first is 0.9).
        warmup: share of the steps with a linearly rising learning rate; a cosine to ``lr * 0.01`` follows.
        clip_grad: largest gradient norm; 0 for none.
        ema: decay of an exponential moving average of the weights (for example 0.999); 0 for none.
        precision: ``auto`` is bf16 on GPUs that have it and fp32 elsewhere.
        shard: share weights, gradients and optimizer state among the processes (FSDP2) instead of copying them (DDP).
        checkpoint_activations: compute each block again in the backward pass instead of keeping what it needs.
        timeout: seconds after which a process that waits for another gives up.
        seed: of weights, order, augmentation and masks.
        workers: processes that read files; ``-1`` picks by the machine.
        threads: CPU threads of the model; 0 leaves PyTorch's choice. The loss curve is reproducible for equal numbers.
        save_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints to keep.
        keep_every: keep the checkpoints of every so many steps as well; 0 for none.
        tensorboard: write TensorBoard events under ``<out>/tensorboard``.
        wandb: Weights & Biases project to log to as well; needs the extra ``wandb``.
        resume: ``auto`` continues the run found in ``out``, if any; ``never`` refuses a folder that holds one.
    """

    out: str
    steps: int = 1000
    batch_size: int = 8
    grad_accum: int = 1
    lr: float | None = None
    weight_decay: float = 0.05
    beta2: float = 0.95
    warmup: float = 0.05
    clip_grad: float = 1.0
    ema: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    shard: bool = False
    checkpoint_activations: bool = False
    timeout: int = 600
    seed: int = 0
    workers: int = -1
    threads: int = 0
    save_every: int = 100
    keep_checkpoints: int = 2
    keep_every: int = 0
    tensorboard: bool = True
    wandb: str | None = None
    resume: Literal["auto", "never"] = "never"

    def __post_init__(self) -> None:
        try:
            self._check()
        except TypeError as error:
            raise ConfigError(f"a setting is of the wrong type ({error}); numbers are given as numbers") from error

    def _check(self) -> None:
        """Refuse numbers out of range; a task's own settings are checked in its ``_check``, after these."""
        self._at_least(1, "steps", "batch_size", "grad_accum", "save_every", "keep_checkpoints", "timeout")
        self._at_least(-1, "workers")
        self._at_least(0, "keep_every", "threads", "clip_grad", "weight_decay", "seed")
        self._share("ema", "warmup", "beta2")
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"lr: {self.lr} is not accepted; give a number above 0")

    def _at_least(self, least: int, *names: str) -> None:
        """Each of the settings is a number of at least ``least``, or left out."""
        kind = "whole number" if least == 1 else "number"
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"{name}: {value} is not accepted; give a {kind} of at least {least}")

    def _share(self, *names: str) -> None:
        """Each of the settings is a number from 0 to 1."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not accepted; give a number from 0 to 1")

    def as_dict(self) -> dict:
        """Plain dict, as it is kept in ``config.json``."""
        return dataclasses.asdict(self)

    def differences(self, other: dict) -> list[str]:
        """Settings whose change since ``other`` (a saved :meth:`as_dict`) moves the loss, as ``name: saved -> now``."""
        return [
            f"{name}: {other.get(name)!r} -> {value!r}"
            for name, value in self.as_dict().items()
            if name not in FREE_ON_RESUME and other.get(name) != value
        ]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Pre-training of a contour-masked auto-encoder.

    Args:
        data: folder of radiographs (searched recursively), one image, a CSV manifest with an ``image`` column, a zip or
            tar archive, or a prepared data set.
        images: folder that relative paths in the manifest start from; the manifest's own by default.
        cache: folder for canvases and contours computed once; ``<out>/cache`` by default.
        model: encoder preset, see ``list_encoders()``.
        decoder: ``cross`` predicts a share of the masked patches by cross-attention (CrossMAE); ``self`` is MAE's.
        decoder_embed_dim: width of the decoder; 512 by default, 192 for tiny encoders.
        decoder_depth: blocks of the decoder; 8 by default, 4 for tiny encoders.
        img_size: canvas side, pixels.
        contour: how the chest contour is found: ``network``, ``classical``, ``prior`` or ``rectangle``.
        strategy: how patches are masked: ``contour``, ``random``, ``rectangle`` or ``block``.
        ratio_inside: share of the patches inside the contour that are masked.
        ratio_outside: share of the patches outside the contour that are masked.
        predict: share of the masked patches that are predicted; 0.25 for ``cross`` and 1 for ``self`` by default.
        norm_pix_loss: predict patches normalised by their own mean and deviation (MAE).
        augment: rotate, zoom, shift and re-expose the radiographs slightly; never mirrored.
        lr: peak learning rate; by default 5e-4 times the square root of (images per step / 8), at most 2.4e-3.
        picture_every: steps between pictures; 0 for the last step only.
    """

    data: str
    images: str | None = None
    cache: str | None = None
    model: str = "vit_small_patch16"
    decoder: Literal["cross", "self"] = "cross"
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    img_size: int = 1280
    contour: Literal["network", "classical", "prior", "rectangle"] = "network"
    strategy: Literal["contour", "random", "rectangle", "block"] = "contour"
    ratio_inside: float = 0.95
    ratio_outside: float = 0.85
    predict: float | None = None
    norm_pix_loss: bool = True
    augment: bool = True
    picture_every: int = 100

    def __post_init__(self) -> None:
        if not (self.data and self.out):
            raise ConfigError("data and out must both be named: the radiographs, and a folder for the run")
        super().__post_init__()

    def _check(self) -> None:
        super()._check()
        self._at_least(1, "decoder_embed_dim", "decoder_depth", "img_size")
        self._at_least(0, "picture_every")
        self._share("ratio_inside", "ratio_outside")
        if self.predict is not None and not 0 < self.predict <= 1:
            raise ConfigError(f"predict: {self.predict} is not accepted; give a share above 0 and up to 1")
        if self.ratio_inside == 0 and self.ratio_outside == 0:
            raise ConfigError("ratio_inside and ratio_outside are both 0: nothing would be masked or learned")

    @property
    def decoder_size(self) -> tuple[int, int]:
        """Width and depth of the decoder."""
        return decoder_size(self.model, self.decoder_embed_dim, self.decoder_depth)


def decoder_size(model: str, width: int | None, depth: int | None) -> tuple[int, int]:
    """Width and depth, filled in: MAE's 8 x 512 would be ten times the work of a tiny encoder."""
    usual = (192, 4) if "tiny" in model else (512, 8)
    return width or usual[0], depth or usual[1]


@dataclass(frozen=True)
class ProbeConfig:
    """A linear probe.

    Args:
        data: CSV manifest, or what a preset reads; see ``read_labels``.
        out: folder for features, model, metrics and plots.
        weights: encoder: a model folder of this package or other published weights.
        images: folder that relative paths in the manifest start from.
        preset: ``chexpert``, ``mimic-cxr``, ``nih14``, ``rsna``, ``vindr`` or ``padchest``.
        classes: which classes; all by default.
        multiclass: exactly one class of each image holds.
        uncertain: what the label -1 means: ``ignore``, ``zeros``, ``ones``, or ``Edema=ones, ...`` for single classes.
        val_share: share of the patients that choose the regularisation, where the manifest has no such split.
        test_share: share of the patients to test on, likewise.
        label_fraction: share of the training patients that is used.
        pool: ``cls``, ``mean`` or ``attention``; the encoder's, or ``mean``, by default.
        keep: patches the encoder looks at: ``all``, ``valid`` or ``contour``; the encoder's by default.
        img_size: canvas side, pixels; the encoder's by default.
        batch_size: images at once.
        workers: processes that read files; -1 takes one per core.
        device: where the encoder runs; a GPU if there is one by default.
        bootstraps: draws of patients for the 95 % intervals.
        seed: of splits, fractions and draws.
        split_seed: of the splits alone; ``seed`` by default.
        max_bad_share: share of all images that may be unreadable.
        features: Parquet file that keeps the features; ``<out>/features.parquet`` by default.
    """

    data: str
    out: str
    weights: str
    images: str | None = None
    preset: str | None = None
    classes: list[str] | None = None
    multiclass: bool = False
    uncertain: str = "ignore"
    val_share: float = 0.1
    test_share: float = 0.2
    label_fraction: float = 1.0
    pool: str | None = None
    keep: str | None = None
    img_size: int | None = None
    batch_size: int = 4
    workers: int = -1
    device: str | None = None
    bootstraps: int = 1000
    seed: int = 0
    split_seed: int | None = None
    max_bad_share: float = 0.05
    features: str | None = None

    def __post_init__(self) -> None:
        if not (self.data and self.out):
            raise ConfigError("data and out must both be named: the labels, and a folder for the results")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"label_fraction: {self.label_fraction} is not accepted; give a share above 0, up to 1")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"max_bad_share: {self.max_bad_share} is not accepted; give a share from 0 to 1")
        if self.batch_size < 1 or self.bootstraps < 0:
            raise ConfigError("batch_size is at least 1, and bootstraps at least 0")
