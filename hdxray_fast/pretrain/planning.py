"""``hdxray-fast plan``: what a pre-training will take, before it is begun: tokens, FLOPs, memory, rate, storage, days.

Tokens, FLOPs and bytes follow from the model by the formulas of :mod:`.pretrain.work`. A rate needs a measurement:
the package brings a table of measured steps (``planning_table.json``, written by ``benchmarks/plan_table.py``), and
what is not in it is said to be an estimate, and what from.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ..errors import ConfigError
from ..files import size_in_words
from ..ops.mask_ratio import RATIO_INSIDE, RATIO_OUTSIDE, masked_patches, round_half_up
from ..training.config import TrainingConfig
from . import work
from .config import check_encoder_name, decoder_size

# Dense bf16 peak, FLOP/s, and memory, GiB, as their makers state them
DEVICES = {
    "a100": (312e12, 80),
    "h100": (989e12, 80),
    "h200": (989e12, 141),
    "b200": (2250e12, 180),
    "l40s": (362e12, 48),
    "a6000": (155e12, 48),
    "rtx4090": (165e12, 24),
}
SHARE_OF_PEAK = 0.25  # what a step is taken to reach where nothing was measured
GIB = 2**30


@dataclass(frozen=True)
class PlanConfig:
    """A planned pre-training.

    Args:
        images: how many radiographs; taken from ``data`` if that is given.
        data: a prepared data set, to take the number of images, their contours and their padding from.
        model: encoder preset: ``vit_tiny_patch16``, and likewise small, base, large and huge; or with ``stem64``.
        decoder: ``cross`` or ``self``.
        decoder_embed_dim: width of the decoder; as for ``pretrain`` by default: 512, and 192 for tiny encoders.
        decoder_depth: blocks of the decoder; 8 by default, 4 for tiny encoders.
        img_size: canvas side, pixels; that of ``data`` by default, or 1280.
        gpus: how many.
        gpu: their kind: ``h100``, ``h200``, ``a100``, ``b200``, ``l40s``, ``a6000``, ``rtx4090``, or ``cpu``.
        batch_size: images per GPU and forward pass.
        epochs: passes over the images.
        precision: ``bf16``, ``fp32``, or ``auto``: fp32 on a CPU, bf16 on GPUs.
        inside: share of a canvas inside the contour.
        valid: share of a canvas that is no padding.
        ratio_inside: share of the patches inside the contour that are masked.
        ratio_outside: share of the patches outside the contour that are masked.
        predict: share of the masked patches that are predicted; the decoder's by default.
        grad_accum: batches per step.
        checkpoint_activations: blocks are computed again in the backward pass.
        shard: weights, gradients and optimizer state are spread over the GPUs (FSDP2).
        format: of the prepared images: ``raw``, ``png`` or ``jpeg``.
        bits: of the prepared images, 8 or 16.
    """

    images: int | None = None
    data: str | None = None
    model: str = "vit_base_patch16"
    decoder: Literal["cross", "self"] = "cross"
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    img_size: int | None = None
    gpus: int = 8
    gpu: str = "h100"
    batch_size: int = 32
    epochs: float = 100
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    inside: float = 0.38
    valid: float = 0.85
    ratio_inside: float = RATIO_INSIDE
    ratio_outside: float = RATIO_OUTSIDE
    predict: float | None = None
    grad_accum: int = 1
    checkpoint_activations: bool = False
    shard: bool = False
    format: Literal["raw", "png", "jpeg"] = "raw"
    bits: Literal[8, 16] = 8

    def __post_init__(self) -> None:
        if self.gpu not in (*DEVICES, "cpu"):
            raise ConfigError(f"gpu: got {self.gpu!r}, accepted are {', '.join(DEVICES)} and cpu")
        if self.images is None and self.data is None:
            raise ConfigError("images: say how many, or name a prepared data set with data")
        check_encoder_name(self.model)
        for name in ("images", "gpus", "batch_size", "grad_accum", "img_size", "decoder_embed_dim", "decoder_depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: got {value}, accepted are whole numbers from 1 on")
        for name in ("inside", "valid", "ratio_inside", "ratio_outside"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, accepted are shares from 0 to 1")
        if not self.epochs > 0 or (self.predict is not None and not 0 < self.predict <= 1):
            raise ConfigError("epochs is above 0, and predict a share above 0 and up to 1")

    def filled_in(self) -> PlanConfig:
        """These settings with a decoder, a size and a precision.

        Raises:
            ConfigError: ``data`` is no prepared data set, or of another size.
        """
        size = self.img_size or 1280
        if self.data is not None:
            from ..data.prepared.reading import PreparedSet

            prepared = PreparedSet(self.data).size
            if self.img_size not in (None, prepared):
                raise ConfigError(
                    f"img_size: got {self.img_size}, {self.data} was prepared with {prepared}; leave it out"
                )
            size = prepared
        width, depth = decoder_size(self.model, self.decoder_embed_dim, self.decoder_depth)
        precision = ("fp32" if self.gpu == "cpu" else "bf16") if self.precision == "auto" else self.precision
        return replace(self, img_size=size, decoder_embed_dim=width, decoder_depth=depth, precision=precision)


@dataclass(frozen=True)
class Rate:
    """Images a second of one device, and where the figure comes from."""

    images_per_second: float
    source: str
    measured: bool


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` finds.

    Attributes:
        images: of the data set.
        tokens, kept, predicted: patches of a canvas; those that an image shows the encoder; those predicted of it.
        parameters: of encoder and decoder.
        flops: of a training step, an image.
        state_bytes: weights, gradients and AdamW's moments, a device.
        step_bytes: activations of a step, a device.
        device_bytes: memory of the device, 0 where unknown.
        rate: of one device.
        steps: optimizer steps.
        seconds: of all steps, devices scaling perfectly.
        prepared_bytes, checkpoint_bytes: on disk.
        checkpoints_per_hour: that ``pretrain`` saves where it is told nothing else.
        steps_per_checkpoint: that go by from one to the next, or all of them.
        read_bytes_per_second: that each device's loader must deliver.
        prepare_core_seconds: to prepare the images, on one core like the one measured; None where nothing was measured.
    """

    images: int
    tokens: int
    kept: int
    predicted: int
    parameters: int
    flops: float
    state_bytes: float
    step_bytes: float
    device_bytes: float
    rate: Rate
    steps: int
    seconds: float
    prepared_bytes: float
    checkpoint_bytes: float
    checkpoints_per_hour: float
    steps_per_checkpoint: float
    read_bytes_per_second: float
    prepare_core_seconds: float | None

    @property
    def fits(self) -> bool | None:
        """Whether a device's memory is enough, with a tenth left for what is not counted; None where unknown."""
        if not self.device_bytes:
            return None
        return self.state_bytes + self.step_bytes < 0.9 * self.device_bytes


def plan(config: PlanConfig) -> Plan:
    """Work a planned pre-training out.

    Raises:
        ConfigError: ``data`` is no prepared data set.
        ArgumentError: model and sizes do not fit together.
    """
    config = config.filled_in()
    images, inside, valid, stored = _images(config)
    shape = Shape.of(config)
    kept, predicted = shape.counts(inside, valid, config)
    again = config.checkpoint_activations
    flops = shape.flops(kept, predicted, again)
    half = config.precision == "bf16"
    spread = config.gpus if config.shard else 1
    rate = device_rate(config.gpu, shape, flops, config.precision)
    samples = images * config.epochs
    steps = math.ceil(samples / (config.batch_size * config.grad_accum * config.gpus))
    seconds = samples / (rate.images_per_second * config.gpus)
    between = 60 * TrainingConfig.save_minutes
    return Plan(
        images=images,
        tokens=shape.patches,
        kept=kept,
        predicted=predicted,
        parameters=shape.parameters,
        flops=flops,
        state_bytes=16.0 * shape.parameters / spread,
        step_bytes=shape.step_bytes(kept, predicted, config.batch_size, half, again),
        device_bytes=0 if config.gpu == "cpu" else DEVICES[config.gpu][1] * GIB,
        rate=rate,
        steps=steps,
        seconds=seconds,
        prepared_bytes=images * stored,
        checkpoint_bytes=12.0 * shape.parameters,
        checkpoints_per_hour=3600 / between,
        steps_per_checkpoint=min(steps, steps * between / seconds),
        read_bytes_per_second=rate.images_per_second * stored,
        prepare_core_seconds=None if (each := table()["prepare"].get("seconds")) is None else images * each,
    )


@dataclass(frozen=True)
class Shape:
    """The sizes of an auto-encoder that FLOPs and memory follow from; ``cast``: weights kept a second time in bf16."""

    model: str
    decoder: str
    patches: int
    patch_values: int
    dim: int
    depth: int
    decoder_dim: int
    decoder_depth: int
    default_predict: float
    parameters: int
    cast: int

    @classmethod
    def of(cls, config: PlanConfig) -> Shape:
        import torch

        from ..models.mae import create_mae

        config = config.filled_in()
        with torch.device("meta"):  # shapes alone: nothing is allocated
            model = create_mae(
                config.model,
                decoder=config.decoder,
                img_size=config.img_size,
                decoder_embed_dim=config.decoder_embed_dim,
                decoder_depth=config.decoder_depth,
            )
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        encoder = model.encoder
        return cls(
            model=config.model,
            decoder=config.decoder,
            patches=math.prod(encoder.grid_size),
            patch_values=encoder.patch_size**2,
            dim=encoder.embed_dim,
            depth=len(encoder.blocks),
            decoder_dim=config.decoder_embed_dim,
            decoder_depth=config.decoder_depth,
            default_predict=model.default_predict,
            parameters=sum(p.numel() for p in trained.values()),
            cast=sum(p.numel() for name, p in trained.items() if p.ndim > 1 and "fc2" not in name),
        )

    def counts(self, inside: float, valid: float, config: PlanConfig) -> tuple[int, int]:
        """Kept and predicted patches of a canvas with these shares inside the contour and without padding."""
        n_valid = round(valid * self.patches)
        n_inside = min(round(inside * self.patches), n_valid)
        masked = sum(masked_patches(n_inside, n_valid - n_inside, config.ratio_inside, config.ratio_outside))
        share = self.default_predict if config.predict is None else config.predict
        return n_valid - masked, round_half_up(share, masked)

    def flops(self, kept: int, predicted: int, again: bool = False) -> float:
        """Of a training step over one image; ``again``: with each block's forward pass done twice."""
        sizes = (self.dim, self.decoder_dim, self.decoder_depth, self.patch_values)
        if self.decoder == "cross":
            rest = work.cross_decoder_flops(kept + 1, predicted, *sizes, maps=self.depth + 1)
        else:
            rest = work.self_decoder_flops(kept + 1, kept + predicted + 1, *sizes)
        step = 3.0 * (work.encoder_flops(kept + 1, self.dim, self.depth, self.patch_values) + rest)
        if not again:
            return step
        if self.decoder == "cross":
            block = work.cross_block_flops(kept + 1, predicted, self.dim, self.decoder_dim)
        else:
            block = work.block_flops(kept + predicted + 1, self.decoder_dim)
        return step + self.depth * work.block_flops(kept + 1, self.dim) + self.decoder_depth * block

    def step_bytes(self, kept: int, predicted: int, batch: int, half: bool, again: bool = False) -> float:
        """Activations of a step, and in bf16 copies of the weights; ``again``: blocks keep their inputs, and one at a
        time what it needs."""
        visible, sizes = kept + 1, (self.dim, self.decoder_dim, self.decoder_depth, half)
        if self.decoder == "cross":
            rest = work.cross_decoder_kept(visible, predicted, *sizes, maps=self.depth + 1, again=again)
            block = work.cross_block_kept(visible, predicted, self.decoder_dim, half)
            weights = 6 * self.decoder_dim**2 + 2 * self.dim * self.decoder_dim
        else:
            rest = work.self_decoder_kept(visible, visible + predicted, *sizes, again=again)
            block = work.block_kept(visible + predicted, self.decoder_dim, half)
            weights = 8 * self.decoder_dim**2
        image = work.encoder_kept(visible, self.dim, self.depth, half, again) + rest
        if not again:
            return batch * image + 2.0 * self.cast * half
        product = 2 if half else 4
        ends = visible * (self.patch_values * product + 4 * self.dim) + predicted * self.decoder_dim * (4 + product)
        blocks = (block, weights), (work.block_kept(visible, self.dim, half), 8 * self.dim**2)
        return batch * (image + ends) + max(batch * size + 2.0 * cast * half for size, cast in blocks)


def _images(config: PlanConfig) -> tuple[int, float, float, float]:
    """How many, their share inside the contour, their share without padding, and bytes of one as it is stored."""
    pixels = config.img_size**2 * config.bits // 8
    if config.data is None:
        share = 1.0 if config.format == "raw" else table()["stored_share"].get(f"{config.format} {config.bits}", 1.0)
        return config.images, config.inside, config.valid, pixels * share
    from ..data.prepared.reading import PreparedSet

    data = PreparedSet(config.data)
    if not len(data):
        raise ConfigError(f"data: {config.data} holds no image")
    inside, valid = data.shares()
    return config.images or len(data), inside, valid, float(data.column("length").to_numpy().mean())


# --- rates ------------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def table() -> dict:
    """Measured steps (``steps``), the cost of preparing (``prepare``) and sizes on disk (``stored_share``)."""
    return json.loads(Path(__file__).with_name("planning_table.json").read_text(encoding="utf-8"))


def device_rate(kind: str, shape: Shape, flops: float, precision: str) -> Rate:
    """Images a second of one device: from a measured step of the same model if there is one, scaled by FLOPs; from
    another model's arithmetic rate on that device; from the device's peak."""
    found = [step for step in table()["steps"] if is_kind(step["device"], kind) and step["precision"] == precision]
    alike = [step for step in found if (step["model"], step["decoder"]) == (shape.model, shape.decoder)]
    decoders = [step for step in found if step["decoder"] == shape.decoder]
    for steps, what in ((alike, "measured"), (decoders, "estimate"), (found, "estimate")):
        if steps:
            best = min(steps, key=lambda step: abs(math.log(step["flops"] / flops)))
            of = f"{best['model']}, {best['decoder']} decoder, {best['precision']} on {best['device']}"
            if what == "measured":
                source = f"measured: {of}; scaled by FLOPs"
            else:
                source = f"estimate: at the FLOP/s measured of {of}"
            return Rate(best["flops"] / best["seconds"] / flops, source, what == "measured")
    if kind == "cpu":
        raise ConfigError(f"gpu: no step on a CPU was measured in {precision}; take precision=fp32")
    peak = DEVICES[kind][0] / (1 if precision == "bf16" else 8)
    return Rate(
        SHARE_OF_PEAK * peak / flops,
        f"estimate: {SHARE_OF_PEAK:.0%} of {peak / 1e12:.0f} TFLOP/s; no step was measured on this device",
        False,
    )


def is_kind(device: str, kind: str) -> bool:
    """Whether a device's name is of a kind of :data:`DEVICES`; "cpu" is any that is none."""
    letters = "".join(device.lower().split()).replace("-", "")
    kinds = [name for name in DEVICES if name in letters]
    return kind in kinds if kinds else kind == "cpu"


# --- words ------------------------------------------------------------------------------------------------------------
def describe(found: Plan, config: PlanConfig) -> str:
    """What the command prints."""
    room = f" of {found.device_bytes / GIB:.0f} GiB" if found.device_bytes else ""
    ways = ["a smaller batch"]
    ways += [] if config.checkpoint_activations else ["--checkpoint-activations true"]
    ways += [] if config.shard or config.gpus == 1 else ["--shard true"]
    verdict = {True: ", fits", False: f", DOES NOT FIT: take {' or '.join(ways)}", None: ""}[found.fits]
    each, every = (_number(found.rate.images_per_second * count) for count in (1, config.gpus))
    need, state, step = (
        f"{count / GIB:.1f}" for count in (found.state_bytes + found.step_bytes, found.state_bytes, found.step_bytes)
    )
    total, stored = found.flops * found.images * config.epochs, size_in_words(found.prepared_bytes)
    batch, prepare = config.batch_size * config.grad_accum * config.gpus, found.prepare_core_seconds
    lines = [
        ("model", f"{config.model}, {config.decoder} decoder, {found.parameters / 1e6:.0f} M parameters"),
        ("tokens", f"{found.kept:,} of {found.tokens:,} shown, {found.predicted:,} predicted, an image (mean)"),
        ("FLOPs", f"{found.flops / 1e9:,.0f} GFLOP an image and step; {total:.2e} in all"),
        ("memory", f"{need} GiB a device{room}{verdict}"),
        ("", f"{state} weights and AdamW, {step} activations at batch {config.batch_size} ({config.precision})"),
        ("rate", f"{each} images/s a device, {every} on {config.gpus} x {config.gpu}"),
        ("", f"({found.rate.source})"),
        ("time", f"{config.epochs:g} epochs, {found.steps:,} steps of {batch}: {_duration(found.seconds)}"),
        ("", "(if devices scale perfectly)"),
        (
            "storage",
            f"{stored} prepared ({config.format}, {config.bits} bits), "
            f"{size_in_words(found.checkpoint_bytes)} a checkpoint",
        ),
        (
            "saving",
            f"{found.checkpoints_per_hour:g} checkpoints an hour, one every {found.steps_per_checkpoint:,.0f} steps "
            f"(--save-minutes {TrainingConfig.save_minutes:g}); {TrainingConfig.keep_checkpoints} are kept",
        ),
        (
            "reading",
            f"{size_in_words(found.prepared_bytes / found.images)} an image, "
            f"{size_in_words(found.read_bytes_per_second)}/s a device",
        ),
    ]
    if prepare is not None:
        lines.append(("prepare", f"{_duration(prepare)} of one core (measured: {table()['prepare']['of']})"))
    head = f"{found.images:,} images of {config.img_size} x {config.img_size}"
    return "\n".join([head, *(f"  {name:<8} {words}" for name, words in lines)])


def as_json(found: Plan) -> str:
    return json.dumps({**asdict(found), "fits": found.fits}, indent=1)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
