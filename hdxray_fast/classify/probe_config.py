"""What a linear probe is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps
from ..errors import ConfigError
from ..names import require_utf8
from .label_settings import LabelSettings
from .operating_points import read_prevalence


@dataclass(frozen=True)
class ProbeConfig(LabelSettings):
    """A linear probe.

    Args:
        data: CSV manifest with the columns image and patient and one for each class, or what ``preset`` reads.
        out: folder for features, model, metrics and plots.
        weights: encoder: ``pretrained`` for the one that comes with the package, a run or model folder, or published
            weights.
        val_share: share of the images that choose the regularisation, where the manifest has no such split.
        label_fraction: share of the training patients that is used.
        pool: ``cls``, ``mean`` or ``attention``; the encoder's, or ``mean``, by default.
        keep: patches the encoder looks at: ``all`` of the square canvas, its padding too; ``valid``, all but the
            padding; ``contour``, those of the chest and a margin around it. By default as the encoder says: the one
            that comes with the package ``all``.
        img_size: canvas side, pixels; the encoder's by default.
        prepared: data set of ``hdxray-fast prepare`` that holds the images; they are then not read from their files.
        batch_size: images at once.
        workers: processes that read files; -1 takes one per core; 0 reads in this process, without caps.
        timeout: seconds that one file may take.
        max_memory: MiB that one file may take.
        device: where the encoder runs; a GPU if there is one by default.
        precision: of the features: ``fp32``, ``bf16``, or ``auto``: bf16 on GPUs that have it and fp32 elsewhere.
        compile: ``on``, ``off``, or ``auto``: on a GPU, for 150,000 images and more.
        calibrate: ``temperature`` divides logits by a number fitted on validation, ``none`` leaves them as they are.
        prevalence: of the classes where they will be looked for: ``0.05``, or ``Edema=0.05, ...``; with it test metrics
            have predictive values.
        bootstraps: draws of patients for the 95 % intervals.
        bootstrap_seed: of these draws.
        exact_fractions: take no patient beyond ``label_fraction``, also where a class is then hardly there.
        seed: of the label fraction.
        max_bad_share: share of all images that may be unreadable.
        features: Parquet file that keeps the features; ``<out>/features.parquet`` by default.
    """

    data: str
    out: str
    weights: str = "pretrained"
    label_fraction: float = 1.0
    pool: str | None = None
    keep: Literal["all", "valid", "contour"] | None = None
    img_size: int | None = None
    prepared: str | None = None
    batch_size: int = 4
    workers: int = -1
    timeout: float = TIMEOUT
    max_memory: int = MAX_MEMORY
    device: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    calibrate: Literal["temperature", "none"] = "temperature"
    prevalence: str | None = None
    bootstraps: int = 1000
    bootstrap_seed: int = 0
    exact_fractions: bool = False
    seed: int = 0
    max_bad_share: float = 0.05
    features: str | None = None

    def __post_init__(self) -> None:
        if not (self.data and self.out):
            raise ConfigError("data and out must both be named: the labels, and a folder for the results")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"label_fraction: {self.label_fraction} is not accepted; give a share above 0, up to 1")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"max_bad_share: {self.max_bad_share} is not accepted; give a share from 0 to 1")
        if self.batch_size < 1 or min(self.bootstraps, self.split_seed, self.bootstrap_seed) < 0:
            raise ConfigError("batch_size is at least 1; bootstraps, split_seed and bootstrap_seed are at least 0")
        check_caps(self.timeout, self.max_memory)
        require_utf8(self.out, "out")
        read_prevalence(self.prevalence)
