"""What every training run is told: one typed object configures it from Python, YAML and the command line alike."""

from __future__ import annotations

import dataclasses
import math
import operator
from dataclasses import dataclass
from types import UnionType
from typing import ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps
from ..errors import ConfigError
from ..names import require_utf8
from .schedule import rise_of, warmup_cosine


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training run is told, whatever it trains.

    A task's own settings are those of a subclass, which names in ``FREE_ON_RESUME`` those of them that may change
    between a run and its resumption.

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
        ema: decay of an exponential moving average of the weights (for example 0.999), reached by and by: after ``n``
            updates it is ``(1 + n) / (10 + n)`` at most; 0 for no average.
        device: where the model runs: ``cpu`` or ``cuda``; a GPU if there is one by default. Of several processes each
            takes a GPU of its own, and one process the first that ``CUDA_VISIBLE_DEVICES`` leaves.
        precision: ``auto`` is bf16 on GPUs that have it and fp32 elsewhere.
        compile: run the model through ``torch.compile``; ``auto`` does on GPUs, for tasks whose models compile into few
            graphs. Where compiling fails a warning says so, and the run goes on without.
        graph: record whole optimizer steps as CUDA graphs, one for each size of batch, and replay them; ``auto`` does
            on a GPU, in one process, for tasks that are made for it. Where recording fails a warning says so, and the
            run goes on without.
        shard: share weights, gradients and optimizer state among the processes (FSDP2) instead of copying them (DDP).
        shard_within: with ``shard``, which processes share: ``all``, or those of a ``node`` among themselves, each node
            with a copy (HSDP), for networks that are slower between nodes than within.
        checkpoint_activations: compute each block again in the backward pass instead of keeping what it needs.
        process_timeout: seconds after which a process that waits for another gives up: within a step, and between steps
            without a sign of life from one that prepares or writes.
        seed: of weights, order, augmentation and masks.
        workers: processes that read files; ``-1`` picks by the machine; 0 reads in this process, without caps.
        timeout: seconds that one file may take.
        max_memory: MiB that one file may take.
        threads: CPU threads of the model; 0 leaves PyTorch's choice. The loss curve is reproducible for equal numbers.
        save_minutes: minutes between checkpoints, which are written while training goes on; 0 for none by the clock.
            One is saved at the end and at a stop in any case.
        save_every: a checkpoint every so many steps as well; 0 for none by steps.
        keep_checkpoints: newest checkpoints to keep.
        keep_every: keep the checkpoints of every so many steps as well; 0 for none.
        tensorboard: write TensorBoard events under ``<out>/tensorboard``.
        wandb: Weights & Biases project to log to as well; needs its package.
        resume: ``auto`` goes on with the run found in ``out``, if any; ``never`` refuses a folder that holds one.
        force: begin anew where ``out`` holds a run: what it wrote is removed, but for its cache of images read once.
    """

    # What may change between a run and its resumption without changing a single loss value; a subclass adds its own.
    # The batch is free as long as the images per step stay the same, which the training loop checks.
    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset(
        {
            "out",
            "resume",
            "force",
            "workers",
            "batch_size",
            "grad_accum",
            "save_minutes",
            "save_every",
            "shard_within",
            "keep_checkpoints",
            "keep_every",
            "process_timeout",
            "timeout",
            "max_memory",
            "compile",
            "device",
            "graph",
            "shard",
            "checkpoint_activations",
            "tensorboard",
            "wandb",
            "threads",
        }
    )

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
    device: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    graph: Literal["auto", "on", "off"] = "auto"
    shard: bool = False
    shard_within: Literal["all", "node"] = "all"
    checkpoint_activations: bool = False
    process_timeout: int = 600
    seed: int = 0
    workers: int = -1
    timeout: float = TIMEOUT
    max_memory: int = MAX_MEMORY
    threads: int = 0
    save_minutes: float = 10.0
    save_every: int = 0
    keep_checkpoints: int = 2
    keep_every: int = 0
    tensorboard: bool = True
    wandb: str | None = None
    resume: Literal["auto", "never"] = "auto"
    force: bool = False

    def __post_init__(self) -> None:
        try:
            self._check()
        except TypeError as error:
            raise ConfigError(f"a setting is of the wrong type ({error}); numbers are given as numbers") from error

    def _check(self) -> None:
        """Refuse words and numbers out of range; a task's own settings are checked in its ``_check``, after these."""
        self._check_kinds()
        self._at_least(1, "steps", "batch_size", "grad_accum", "keep_checkpoints", "process_timeout")
        check_caps(self.timeout, self.max_memory)
        require_utf8(self.out, "out")
        self._at_least(-1, "workers")
        self._at_least(0, "save_minutes", "save_every", "keep_every", "threads", "clip_grad", "weight_decay", "seed")
        self._share("ema", "warmup", "beta2")
        if self.device not in (None, "cpu", "cuda"):
            raise ConfigError(
                f"device: got {self.device!r}, accepted are cpu and cuda; of several GPUs CUDA_VISIBLE_DEVICES chooses"
            )
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ConfigError(f"lr: {self.lr} is not accepted; give a number above 0")
        if self.seed >= 1 << 64:
            raise ConfigError(f"seed: {self.seed} is not accepted; give a whole number below 2^64")

    def _check_kinds(self) -> None:
        """The words of a setting, whole numbers, and yes or no: the command's parser refuses others by itself."""
        hints = get_type_hints(type(self))
        for name in (field.name for field in dataclasses.fields(self)):
            hint, value = hints[name], getattr(self, name)
            kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
            if value is None and type(None) in kinds:
                continue
            if words and value not in words:
                raise ConfigError(f"{name}: got {value!r}, accepted are {', '.join(words)}")
            if int in kinds:
                if isinstance(value, bool) or not hasattr(value, "__index__"):
                    raise ConfigError(f"{name}: got {value!r}, accepted is a whole number")
                object.__setattr__(self, name, operator.index(value))  # NumPy's too, which JSON does not take
            if bool in kinds and type(value) is not bool:
                raise ConfigError(f"{name}: got {value!r}, accepted are True and False")

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

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at ``step``, counted from 0."""
        return warmup_cosine(step, self.steps, rise_of(self.steps, self.warmup))

    def common_steps(self, steps: int) -> int | None:
        """How many steps a run of ``steps`` shares with any longer one; ``None`` if all that it does hangs on them."""

    def as_dict(self) -> dict:
        """Plain dict, as it is kept in ``config.json``: without ``force``, which is asked for each time."""
        settings = dataclasses.asdict(self)
        del settings["force"]
        return settings

    @property
    def goes_on(self) -> bool:
        """Whether a run that is found in ``out`` is gone on with."""
        return self.resume == "auto" and not self.force

    def differences(self, other: dict) -> list[str]:
        """Settings whose change since ``other`` (a saved :meth:`as_dict`) moves the loss, as ``name: saved -> now``.

        One that ``other`` lacks came with a later release, whose default is what was done before.
        """
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        return [
            f"{name}: {other.get(name)!r} -> {value!r}"
            for name, value in self.as_dict().items()
            if name not in self.FREE_ON_RESUME and other.get(name, usual[name]) != value
        ]
