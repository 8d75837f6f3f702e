"""What fine-tuning is told."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..data.augment import OPERATIONS
from ..errors import ConfigError
from ..images.contour_methods import ContourMethod
from ..training.config import TrainingConfig
from .label_settings import LabelSettings
from .operating_points import read_prevalence


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig, LabelSettings):
    """Fine-tuning of an encoder to recognise diseases.

    Args:
        data: CSV manifest with the columns image and patient and one for each class, or what ``preset`` reads.
        weights: encoder: ``pretrained`` for the one that comes with the package, a run or model folder, or published
            weights; left out, ``pretrained``, or ``model`` if that is given.
        model: encoder preset to begin with untrained, in place of ``weights``: for many films, or as a baseline.
        head: ``linear`` on the pooled feature, ``attention`` (a learned query pools), ``label-query`` (one each).
        tune: ``all`` weights, or the ``head`` on a frozen encoder; a frozen ``linear`` is a probe on cached features.
        pool: of the linear head: ``cls`` or ``mean``; the encoder's, or ``mean``, by default.
        keep: patches the encoder looks at: ``all`` of the square canvas, its padding too; ``valid``, all but the
            padding; ``contour``, those of the chest and a margin around it. By default as the encoder says: the one
            that comes with the package ``all``.
        text: what embeds the diseases' names for ``label-query``: a sentence-transformers model or its folder; ``auto``
            takes the usual one if it can be had and learned vectors otherwise; ``none`` takes learned vectors.
        img_size: canvas side, pixels; the encoder's by default (1280 for an untrained one).
        contour: how the chest contour is found: ``network``, ``classical``, ``prior`` or ``rectangle``.
        prepared: data set of ``hdxray-fast prepare`` that holds the images; they are then not read again.
        cache: folder for canvases and contours computed once; ``<out>/cache`` by default.
        epochs: passes over the training images; ``steps``, if given, stands above it.
        steps: optimizer steps.
        eval_every: steps between validations; one epoch by default.
        select: what the best model on validation is best in: ``auroc`` or ``auprc`` (mean of the classes), ``loss``.
        augment: ``rand`` draws ``augment_operations`` changes for each image, ``mild`` rotates, zooms, shifts and
            re-exposes slightly (a view, but with ``mixup``); never mirrored.
        augment_operations: changes that ``rand`` draws.
        augment_magnitude: their largest strength, 0 to 1.
        mixup: alpha of the Beta distribution that images are mixed by, in pairs: ``batch_size`` is even; 0 for none.
        class_weight: ``balanced`` lets every class count alike, at the price of calibration.
        lr: peak learning rate; by default 5e-4 (head alone: 2e-3) times the square root of (images per step / 64).
        calibrate: ``temperature`` divides logits by a number fitted on validation, ``none`` leaves them as they are.
        prevalence: of the classes where they will be looked for: ``0.05``, or ``Edema=0.05, ...``; with it test metrics
            have predictive values.
        layer_decay: factor on the learning rate from each block to the one below it.
        drop_path: share of the images that skip the last block while training, falling to 0 in the first.
        precision: ``auto`` is bf16 on GPUs that have it and fp32 elsewhere; ``fp16`` needs a GPU.
        label_fractions: shares of the training patients; each is a run of its own (validation and test stay whole).
        seeds: of weights, order, augmentation and label fractions; each is a run of its own; ``seed`` by default.
        max_bad_share: share of all images that may be unreadable before the run stops.
        bootstraps: draws of patients for the 95 % intervals.
        bootstrap_seed: of these draws.
        exact_fractions: take no patient beyond ``label_fractions``, also where a class is then hardly there.
    """

    FREE_ON_RESUME: ClassVar[frozenset[str]] = TrainingConfig.FREE_ON_RESUME | {
        "cache", "max_bad_share", "bootstraps", "bootstrap_seed", "prevalence", "calibrate",
    }  # fmt: skip

    data: str
    weights: str | None = None
    model: str | None = None
    head: Literal["linear", "attention", "label-query"] = "linear"
    tune: Literal["all", "head"] = "all"
    pool: Literal["cls", "mean"] | None = None
    keep: Literal["all", "valid", "contour"] | None = None
    text: str = "auto"
    img_size: int | None = None
    contour: ContourMethod = "network"
    prepared: str | None = None
    cache: str | None = None
    epochs: float = 20.0
    steps: int | None = None
    eval_every: int | None = None
    select: Literal["auroc", "auprc", "loss"] = "auroc"
    augment: Literal["rand", "mild", "none"] = "rand"
    augment_operations: int = 2
    augment_magnitude: float = 0.5
    mixup: float = 0.0
    class_weight: Literal["none", "balanced"] = "none"
    calibrate: Literal["temperature", "none"] = "temperature"
    prevalence: str | None = None
    layer_decay: float = 0.75
    beta2: float = 0.999
    drop_path: float = 0.1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    label_fractions: list[float] = field(default_factory=lambda: [1.0])
    seeds: list[int] | None = None
    max_bad_share: float = 0.05
    bootstraps: int = 1000
    bootstrap_seed: int = 0
    exact_fractions: bool = False

    def __post_init__(self) -> None:
        if not (self.data and self.out):
            raise ConfigError("data and out must both be named: the labels, and a folder for the run")
        super().__post_init__()

    def _check(self) -> None:
        super()._check()
        self._at_least(1, "eval_every", "img_size")
        self._at_least(0, "mixup", "augment_operations", "bootstraps", "split_seed", "bootstrap_seed")
        self._share("val_share", "test_share", "augment_magnitude", "max_bad_share")
        if not self.epochs > 0:
            raise ConfigError(f"epochs: {self.epochs} is not accepted; give a number above 0")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay: {self.layer_decay} is not accepted; give a number above 0 and up to 1")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path: {self.drop_path} is not accepted; give a share from 0 to below 1")
        if self.augment_operations > len(OPERATIONS):
            count = self.augment_operations
            raise ConfigError(f"augment_operations: {count} is not accepted; give 0 to {len(OPERATIONS)}")
        read_prevalence(self.prevalence)
        if self.force and self.is_probe:
            raise ConfigError("force: tune=head with a linear head is a probe, which has no run; choose another out")
        for name in ("label_fractions", "seeds"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) != len(values)):
                raise ConfigError(f"{name}: {values} is not accepted; give different numbers")
        for share in self.label_fractions:
            if not 0 < share <= 1:
                raise ConfigError(f"label_fractions: {share} is not accepted; give shares above 0 and up to 1")
        if self.mixup and self.batch_size % 2:
            raise ConfigError(
                f"mixup: images are mixed in pairs, which takes an even batch_size; {self.batch_size} is not accepted"
            )

    @property
    def is_probe(self) -> bool:
        """A frozen encoder with a linear head: features are computed once, and the fit is scikit-learn's."""
        return self.tune == "head" and self.head == "linear"

    def runs(self) -> list[FinetuneConfig]:
        """A configuration for each label fraction and seed; where there is one alone, it is in ``out`` itself."""
        seeds = self.seeds or [self.seed]
        several = len(seeds) * len(self.label_fractions) > 1
        made = []
        for share in self.label_fractions:
            for seed in seeds:
                out = os.path.join(self.out, f"fraction_{share:g}", f"seed_{seed}") if several else self.out
                cache = self.cache or os.path.join(self.out, "cache")
                one = {"out": out, "cache": cache, "label_fractions": [share], "seeds": [seed], "seed": seed}
                made.append(dataclasses.replace(self, **one))
        return made

    def differences(self, other: dict) -> list[str]:
        """As for any training; steps that follow from other epochs are not told beside these."""
        found = super().differences(other)
        by_epochs = any(told.startswith("epochs: ") for told in found)
        return [told for told in found if not (by_epochs and told.startswith("steps: "))]

    def with_steps(self, images: int, processes: int) -> FinetuneConfig:
        """The configuration with ``steps`` and ``eval_every`` for so many training images."""
        epoch = max(1, math.ceil(images / (self.batch_size * self.grad_accum * processes)))
        steps = self.steps or max(1, math.ceil(self.epochs * epoch))
        return dataclasses.replace(self, steps=steps, eval_every=min(self.eval_every or epoch, steps))
