"""``hdxray-fast plan``: what a pre-training will take, before it is begun: tokens, FLOPs, memory, rate, storage, days.

Tokens, FLOPs and bytes follow from the model (:mod:`.pretrain.shape`). A rate needs a measurement
(:mod:`.pretrain.rates`); what was not measured is said to be an estimate, and what from.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass

from ..errors import ConfigError
from ..files import size_in_words
from ..terminal import counted
from ..training.config import TrainingConfig
from . import rates
from .config import PretrainConfig
from .gpus import DEVICES
from .plan_config import PlanConfig
from .shape import Shape

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` finds.

    Attributes:
        images: of the data set.
        open_seconds: that opening the data set took here and now; None where none is named.
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
    open_seconds: float | None
    tokens: int
    kept: int
    predicted: int
    parameters: int
    flops: float
    state_bytes: float
    step_bytes: float
    device_bytes: float
    rate: rates.Rate
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
    open_seconds = None if config.data is None else seconds_to_open(config)
    shape = Shape.of(config)
    kept, predicted = shape.counts(inside, valid, config)
    again = config.checkpoint_activations
    flops = shape.flops(kept, predicted, again)
    half = config.precision == "bf16"
    spread = config.gpus if config.shard else 1
    rate = rates.device_rate(config.gpu, shape, flops, config.precision)
    samples = images * config.epochs
    steps = math.ceil(samples / (config.batch_size * config.grad_accum * config.gpus))
    seconds = samples / (rate.images_per_second * config.gpus)
    between = 60 * TrainingConfig.save_minutes
    return Plan(
        images=images,
        open_seconds=open_seconds,
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
        prepare_core_seconds=None if (each := rates.table()["prepare"].get("seconds")) is None else images * each,
    )


def seconds_to_open(config: PlanConfig) -> float:
    """That each process of a training takes to open the data set: index, lookup, and what is drawn up of its images.

    Args:
        config: filled in; names the data set.

    Raises:
        ConfigError: there is no such data set, it is damaged, or holds no image.
    """
    from ..data.prepared.finding import open_prepared
    from .task import PretrainTask

    task = PretrainTask(PretrainConfig(data=config.data, out="unused", model=config.model, img_size=config.img_size))
    began = time.perf_counter()
    task.use(open_prepared(config.data, img_size=config.img_size))
    task.dataset.kept_patches(config.ratio_inside, config.ratio_outside)
    return time.perf_counter() - began


def _images(config: PlanConfig) -> tuple[int, float, float, float]:
    """How many, their share inside the contour, their share without padding, and bytes of one as it is stored."""
    pixels = config.img_size**2 * config.bits // 8
    if config.data is None:
        share = (
            1.0 if config.format == "raw" else rates.table()["stored_share"].get(f"{config.format} {config.bits}", 1.0)
        )
        return config.images, config.inside, config.valid, pixels * share
    from ..data.prepared.reading import PreparedSet

    data = PreparedSet(config.data)
    if not len(data):
        raise ConfigError(f"data: {config.data} holds no image")
    inside, valid = data.shares()
    return config.images or len(data), inside, valid, float(data.column("length").to_numpy().mean())


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
    minutes = f"--save-minutes {TrainingConfig.save_minutes:g}"
    saved = f"one checkpoint, at the end (all takes less than {minutes})"
    if found.steps_per_checkpoint < found.steps:
        saved = f"{counted(found.checkpoints_per_hour, 'checkpoint')} an hour, one every "
        saved += f"{counted(round(found.steps_per_checkpoint), 'step')} ({minutes}); "
        saved += f"{TrainingConfig.keep_checkpoints} are kept"
    steps = counted(found.steps, "step")
    lines = [
        ("model", f"{config.model}, {config.decoder} decoder, {found.parameters / 1e6:.0f} M parameters"),
        ("tokens", f"{found.kept:,} of {found.tokens:,} shown, {found.predicted:,} predicted, an image (mean)"),
        ("FLOPs", f"{found.flops / 1e9:,.0f} GFLOP an image and step; {total:.2e} in all"),
        ("memory", f"{need} GiB a device{room}{verdict}"),
        ("", f"{state} weights and AdamW, {step} activations at batch {config.batch_size} ({config.precision})"),
        ("rate", f"{each} images/s a device, {every} on {config.gpus} x {config.gpu}"),
        ("", f"({found.rate.source})"),
        ("time", f"{counted(config.epochs, 'epoch')}, {steps} of {batch}: {_duration(found.seconds)}"),
        ("", "(if devices scale perfectly)"),
        (
            "storage",
            f"{stored} prepared ({config.format}, {config.bits} bits), "
            f"{size_in_words(found.checkpoint_bytes)} a checkpoint",
        ),
        ("saving", saved),
        (
            "reading",
            f"{size_in_words(found.prepared_bytes / found.images)} an image, "
            f"{size_in_words(found.read_bytes_per_second)}/s a device",
        ),
    ]
    if found.open_seconds is not None:
        lines.append(("opening", f"the set: {found.open_seconds:.2g} s, measured here"))
    if prepare is not None:
        lines.append(("prepare", f"{_duration(prepare)} of one core (measured: {rates.table()['prepare']['of']})"))
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
    return counted(round(seconds), "second")
