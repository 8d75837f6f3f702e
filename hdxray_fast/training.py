"""The training loop: what pre-training, fine-tuning and report generation have in common.

A :class:`Task` says what is trained on what; :class:`Training` runs it: one process or many, in steps that survive
``kill -9``. What it writes under ``config.out``: ``config.json``, ``log.jsonl`` (a line per step), ``checkpoints/``,
``tensorboard/``, and ``failed/`` where a loss was not finite.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .config import TrainingConfig
from .data import StepSampler
from .errors import ConfigError, MissingDependencyError, TrainingError
from .files import written_whole
from .optim import averaged_weights, parameter_groups, warmup_cosine
from .run_state import (
    checkpoint_folder,
    prune_checkpoints,
    resume_latest,
    save_checkpoint,
    truncate_log,
    whole_state,
)


class Task:
    """What is trained. Subclasses override what they need; only :meth:`build`, :meth:`loader` and :meth:`loss` must be.

    A task holds nothing that changes from step to step except what :meth:`state` returns: whatever is drawn at random
    is drawn by counters (see :class:`hdxray_fast.data.StepSampler`), or by torch's generator within :meth:`loss`,
    which every step seeds anew. So a resumed run is the run that never stopped.

    Attributes:
        label: name of the progress bar.
        fingerprint: of the data, filled in before :meth:`Training.run`; a resumed run must have the same.
    """

    label = "train"
    fingerprint = ""

    def build(self) -> nn.Module:
        """The model, on the CPU; torch's generator is seeded before. Called again where a whole copy is needed."""
        raise NotImplementedError

    def groups(self, model: nn.Module, config: TrainingConfig) -> list[dict]:
        """AdamW's parameter groups; ``group["lr_scale"]`` scales the learning rate of a group."""
        return parameter_groups(model, config.weight_decay)

    def peak_lr(self, images: int) -> float:
        """Peak learning rate for so many images per step, where the settings give none."""
        return 5e-4 * math.sqrt(images / 8)

    def loader(self, training: Training, start: int) -> Iterable[dict]:
        """Batches of this process from step ``start`` on, ``grad_accum`` a step; see :meth:`Training.loader`."""
        raise NotImplementedError

    def to_device(self, batch: dict, device: torch.device) -> dict:
        """The batch where the model is; what is not a tensor stays. A place to add what is computed there."""
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def weight(self, batch: dict) -> int | Tensor:
        """Number of things that the loss of ``batch`` is a mean over, such as images, tokens or predicted patches.

        The loss of a step is the mean over all of them, whatever their spread over processes and forward passes.
        """
        return len(next(value for value in batch.values() if isinstance(value, Tensor)))

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict[str, int | float | Tensor]]:
        """Loss (a mean, see :meth:`weight`) and numbers to log: integers are summed over the step, others averaged.

        Args:
            model: to be called as it is, not by its parts: it may be wrapped for several processes.
            batch: from :meth:`to_device`.
        """
        raise NotImplementedError

    def files(self, batch: dict) -> list[str]:
        """Names of the files of a batch, for the error about a loss that is not finite."""
        return []

    def after_step(self, training: Training, step: int, done: bool) -> dict | None:
        """Pictures, validation, the best model so far; every process calls it. Numbers returned are logged.

        ``step`` steps are behind; ``done``: these were all. The checkpoint of the step is saved afterwards.
        """

    def state(self) -> dict:
        """JSON-able values that a resumed run goes on from."""
        return {}

    def load_state(self, state: dict) -> None:
        """Take what :meth:`state` gave."""

    def json_files(self, model: nn.Module) -> dict[str, dict]:
        """Further files of a checkpoint, such as the ``config.json`` that makes it a model to load."""
        return {}


@dataclass
class TrainingResult:
    """What :meth:`Training.run` did.

    Attributes:
        start: steps that lay behind when it began.
        losses: loss of each step this process ran.
        seconds_per_step: median over them.
        finished: all steps were run (False after SIGTERM).
    """

    start: int = 0
    losses: list[float] = field(default_factory=list)
    seconds_per_step: float = math.nan
    finished: bool = False


class Training:
    """A run of ``task`` as ``config`` says: model, optimizer, and the folder they are kept in.

    Args:
        config: all settings.
        task: what is trained.
        progress: show progress bars.
        on_step: called with each log line's dict.

    Attributes:
        model: as it is trained, without wrappers; on the CPU until :meth:`run`.
        accelerator: Accelerate's, for what a task does across processes.
        out: folder of the run.
        step: optimizer steps that lie behind.

    Raises:
        MissingDependencyError: the extra ``train`` is not installed.
    """

    def __init__(
        self,
        config: TrainingConfig,
        task: Task,
        *,
        progress: bool = True,
        on_step: Callable[[dict], None] | None = None,
    ) -> None:
        try:
            from accelerate import Accelerator
            from tqdm.auto import tqdm
        except ImportError as error:
            raise MissingDependencyError(
                f"training needs {error.name}; install it with: pip install 'hdxray-fast[train]'"
            ) from error
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.task, self.on_step = config, task, on_step or (lambda line: None)
        self.out = Path(config.out)
        self.log = self.out / "log.jsonl"
        self.checkpoints = self.out / "checkpoints"
        self.accelerator = Accelerator(mixed_precision=_precision(config.precision))
        self.bar = lambda **options: tqdm(
            disable=not (progress and self.accelerator.is_main_process), dynamic_ncols=True, **options
        )
        self.images_per_step = config.batch_size * config.grad_accum * self.accelerator.num_processes
        self.step = 0
        self.stop_requested = False
        # what the model cannot be shows here, before hours of preparation and before anything is written
        torch.manual_seed(config.seed)
        self.model = task.build()
        self.peak = config.lr or task.peak_lr(self.images_per_step)
        groups = task.groups(self.model, config)
        self.optimizer = torch.optim.AdamW(groups, lr=self.peak, betas=(0.9, config.beta2), fused=True)
        self.ema = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.accelerator.is_main_process

    def print(self, text: str) -> None:
        """Print once, whatever the number of processes."""
        self.accelerator.print(text)

    def claim_folder(self) -> None:
        """Refuse to mix two runs in one folder; write this run's settings down.

        Raises:
            ConfigError: the folder holds another run, or cannot be written.
        """
        saved = self.out / "config.json"
        started = self.log.exists() or any(self.checkpoints.glob("step_*"))
        if saved.exists() and started:
            if self.config.resume == "never":
                raise ConfigError(
                    f"out: {self.out} already holds a run; continue it with resume=auto (--resume auto), "
                    "or choose another folder"
                )
            try:
                differences = self.config.differences(json.loads(saved.read_text()))
            except ValueError as error:
                raise ConfigError(f"out: {saved} is damaged ({error}); choose another folder") from error
            if differences:
                raise ConfigError(
                    f"out: {self.out} holds a run with other settings ({'; '.join(differences)}); "
                    "resume with the same ones, or choose another folder"
                )
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        if self.is_main:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                with written_whole(saved) as temporary:
                    temporary.write_text(json.dumps(self.config.as_dict(), indent=1))
            except OSError as error:
                raise ConfigError(f"out: cannot write to {self.out} ({error.strerror})") from error
        self.accelerator.wait_for_everyone()

    def loader(self, dataset: Dataset, start: int, collate_fn: Callable | None = None) -> DataLoader:
        """Batches of this process from step ``start`` on, of a data set that maps ``(epoch, index)`` to samples."""
        config, accelerator = self.config, self.accelerator
        sampler = StepSampler(
            len(dataset),
            config.batch_size,
            first=start * config.grad_accum,
            last=config.steps * config.grad_accum,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        on_gpu = accelerator.device.type == "cuda"
        # on the CPU a step takes far longer than reading its batch, and the model wants every core
        workers = config.workers if config.workers >= 0 else (min(8, os.cpu_count() or 1) if on_gpu else 0)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=workers, pin_memory=on_gpu, collate_fn=collate_fn)

    def run(self) -> TrainingResult:
        """Train to the end, or to SIGTERM, from the newest checkpoint if there is one.

        Raises:
            ConfigError: the data or the images per step are not those of the run that is resumed.
            CheckpointError: there are checkpoints, and none can be read; or one cannot be written.
            TrainingError: a loss or gradient is not finite (state saved under ``failed/``).
        """
        result = TrainingResult()
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.model = self.accelerator.unwrap_model(self.wrapped)
        self.ema = averaged_weights(self.model, self.config.ema)
        self._restore()
        result.start = self.step
        self._start_trackers()
        bar = self.bar(total=self.config.steps, initial=self.step, unit="step", desc=self.task.label)
        with self._graceful_stop(), bar:
            self._train(bar, result)
        result.finished = self.step == self.config.steps
        self.accelerator.end_training()
        return result

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """For validation: within, the model is in evaluation mode, without gradients and, if kept, averaged."""
        self.model.eval()
        with torch.no_grad(), self.ema.swapped_into(self.model) if self.ema else contextlib.nullcontext():
            yield self.model
        self.model.train()

    def whole_model(self) -> nn.Module | None:
        """A copy of the model on the CPU, with the averaged weights if any are kept; every process must call this.

        Returns:
            The model on the main process, ``None`` on the others.
        """
        with self.ema.swapped_into(self.model) if self.ema else contextlib.nullcontext():
            tensors = whole_state(self.model, self.is_main)
            if not self.is_main:
                return None
            model = self.task.build()
            model.load_state_dict(tensors)
        return model

    def _restore(self) -> None:
        """Go on from the newest checkpoint; the log loses the lines that it does not cover."""
        state = None
        if self.config.resume == "auto":
            state = resume_latest(self.checkpoints, self.model, self.optimizer, self.ema)
        if state:
            if state["data"] != self.task.fingerprint:
                raise ConfigError(
                    f"data: these are other readable images than when the run in {self.out} was started; "
                    "resume needs the same ones"
                )
            if state["images_per_step"] != self.images_per_step:
                raise ConfigError(
                    f"batch_size: the run in {self.out} has {state['images_per_step']} images per step "
                    f"(batch_size * grad_accum * processes), and not {self.images_per_step}; resume needs the same"
                )
            self.step = state["step"]
            self.task.load_state(state["task"])
            self.print(f"resumed at step {self.step} of {self.config.steps}")
        if self.is_main:
            truncate_log(self.log, self.step)

    def _start_trackers(self) -> None:
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        trackers = []
        if self.config.tensorboard:
            trackers.append(TensorBoardTracker("tensorboard", str(self.out), purge_step=self.step + 1))
        if self.config.wandb:
            try:
                import wandb  # noqa: F401
            except ImportError as error:
                raise MissingDependencyError("wandb is not installed: pip install 'hdxray-fast[wandb]'") from error
            trackers.append(WandBTracker(self.config.wandb, dir=str(self.out), name=self.out.name))
        self.accelerator.log_with = trackers
        self.accelerator.init_trackers("", config=None)

    def _train(self, bar, result: TrainingResult) -> None:
        config = self.config
        batches = iter(self.task.loader(self, self.step))
        durations = []
        self.wrapped.train()
        while self.step < config.steps and not self.stop_requested:
            began = time.perf_counter()
            self._seed_step()
            rate = self.peak * warmup_cosine(self.step, config.steps, config.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            micro = [self.task.to_device(next(batches), self.accelerator.device) for _ in range(config.grad_accum)]
            loss, numbers = self._backward(micro)
            norm = float(self.accelerator.clip_grad_norm_(self.wrapped.parameters(), config.clip_grad or math.inf))
            # in fp16 a gradient may overflow: the scaler skips the step and scales the next one down
            if not (math.isfinite(loss) and (math.isfinite(norm) or self.accelerator.scaler is not None)):
                self._fail(loss, norm, [file for batch in micro for file in self.task.files(batch)])
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.ema is not None:
                self.ema.update(self.model)
            self.step += 1
            durations.append(time.perf_counter() - began)
            result.losses.append(loss)
            done = self.step == config.steps
            more = self.task.after_step(self, self.step, done) or {}
            speed = round(self.images_per_step / durations[-1], 4)
            line = {"step": self.step, "loss": loss, "lr": rate, "grad_norm": norm, **numbers, "images_per_s": speed}
            self._record({**line, **more}, bar)
            if done or self.stop_requested or self.step % config.save_every == 0:
                self._save(checkpoint_folder(self.checkpoints, self.step))
                if self.is_main:
                    prune_checkpoints(self.checkpoints, config.keep_checkpoints)
        if durations:
            result.seconds_per_step = sorted(durations)[len(durations) // 2]

    def _seed_step(self) -> None:
        """What dropout and the like draw depends on the step and the process alone, and so needs no saving."""
        words = [self.config.seed, self.step, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))

    def _backward(self, micro: list[dict]) -> tuple[float, dict[str, int | float]]:
        """Gradients of the mean over everything in the step; that mean, and the numbers to log."""
        accelerator = self.accelerator
        counts = torch.tensor([float(self.task.weight(batch)) for batch in micro], dtype=torch.float64)
        total = float(accelerator.reduce(counts.sum().to(accelerator.device), "sum"))
        # the gradients of the processes are averaged, hence their number
        shares = [float(count) / total if total else 0.0 for count in counts]
        sums: dict[str, Tensor] = {}
        for index, (batch, share) in enumerate(zip(micro, shares, strict=True)):
            last = index == len(micro) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                loss, numbers = self.task.loss(self.wrapped, batch)
                accelerator.backward(loss * (share * accelerator.num_processes))
            for name, value in {"loss": loss.detach(), **numbers}.items():
                value = torch.as_tensor(value, device=accelerator.device)
                value = value.double() * share if value.is_floating_point() else value
                sums[name] = sums[name] + value if name in sums else value
        whole = {name: accelerator.reduce(value, "sum").item() for name, value in sums.items()}
        return whole.pop("loss"), whole

    def _record(self, line: dict, bar) -> None:
        if self.is_main:
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        self.accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])
        bar.set_postfix(loss=f"{line['loss']:.4f}", images_per_s=f"{line['images_per_s']:.2f}", refresh=False)
        bar.update()
        self.on_step(line)

    def _save(self, folder: Path, **more) -> None:
        state = {
            "step": self.step,
            "data": self.task.fingerprint,
            "images_per_step": self.images_per_step,
            "task": self.task.state(),
            **more,
        }
        files = self.task.json_files(self.model)
        save_checkpoint(folder, self.model, self.optimizer, state, self.ema, files, write=self.is_main)

    def _fail(self, loss: float, norm: float, files: list[str]) -> None:
        """Keep the state that led to a loss that is not finite, name the files, and stop."""
        folder = checkpoint_folder(self.out / "failed", self.step + 1)
        self._save(folder, files=files)
        raise TrainingError(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}: not finite. The batch: {', '.join(files)}. "
            f"The state before this step is in {folder}; look at the files, or lower lr"
        )

    @contextlib.contextmanager
    def _graceful_stop(self) -> Iterator[None]:
        """SIGTERM (a scheduler's notice) ends the run after the step at hand, with a checkpoint."""

        def request(signum, frame):
            self.stop_requested = True

        try:
            previous = signal.signal(signal.SIGTERM, request)
        except ValueError:  # not the main thread: the caller owns the signals
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


def _precision(wanted: str) -> str:
    if wanted == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    if wanted == "fp16" and not torch.cuda.is_available():
        raise ConfigError("precision: fp16 needs a GPU; accepted here are bf16 and fp32")
    return wanted if wanted in ("bf16", "fp16") else "no"
