"""The training loop: what pre-training, fine-tuning and report generation have in common.

A :class:`.Task` says what is trained on what; :class:`Training` runs it: one process or many, in steps
that survive ``kill -9``. What it writes under ``config.out``: ``config.json``, ``log.jsonl`` (a line per step),
``checkpoints/``, ``data.parquet`` (what it is trained on), ``tensorboard/``, and ``failed/`` where a loss was not
finite.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.order import Order
from ..data.sampler import StepSampler
from ..errors import CheckpointError, ConfigError, HDXrayError, TrainingError
from ..ops.compiled import Compiled
from ..regular_files import reason_of
from ..terminal import visible_lines
from .checkpoints import (
    checkpoint_folder,
    prune_checkpoints,
    resume_latest,
    set_aside_after,
    take_snapshot,
    whole_state,
    write_checkpoint,
)
from .config import TrainingConfig
from .data_record import refuse_other_data
from .graphs import graphs_for
from .late import Feed
from .optimizer import averaged_weights, warmup_cosine
from .pace import Pace
from .processes import (
    checkpoint_activations,
    launcher_shards,
    loader_workers,
    make_accelerator,
    naming_lost_processes,
    on_main,
    one_opencv_thread,
    outlive_notice,
    shard,
)
from .run_folder import RunFolder
from .run_log import last_step
from .running import Running, UnderWay
from .step import Parts, StepLater, StepNow
from .stop import StopNotice
from .task import Task
from .trackers import start_trackers


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
        step: optimizer steps that lie behind; on a GPU the last may still be under way.
        captures: steps are recorded as CUDA graphs, one for each shape of their batches.

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
        sharded = launcher_shards() or config.shard
        self.accelerator = make_accelerator(config.precision, config.process_timeout)
        self._precision = self.accelerator.mixed_precision
        self.sharded = sharded and self.accelerator.num_processes > 1
        if self.sharded and config.precision == "fp16":
            raise ConfigError("precision: fp16 and shard do not go together; accepted with shard are bf16 and fp32")
        if config.threads:  # after Accelerate, which sets them too
            torch.set_num_threads(config.threads)
        self.config, self.task, self.on_step = config, task, on_step or (lambda line: None)
        self.folder = RunFolder(config, self.accelerator, task.label.replace(" ", "-"), task.writes)
        self._keep_folder = False
        self.out, self.log, self.checkpoints = self.folder.path, self.folder.log, self.folder.checkpoints
        self.progress = progress and self.is_main
        self.images_per_step = config.batch_size * config.grad_accum * self.accelerator.num_processes
        self.step = 0
        self.stop = StopNotice()
        # what the model cannot be shows here, before hours of preparation and before anything is written
        torch.manual_seed(config.seed)
        self.model = task.build()
        self.peak = config.lr or task.peak_lr(self.images_per_step)
        self._graphs = graphs_for(self.accelerator.device)
        # gradients that are shared out, and a scaler's, are looked at where they are
        self._late = self._graphs is not None and not self.sharded and self.accelerator.scaler is None
        self.captures = self._records()
        self.optimizer = self._make_optimizer()
        self.ema = None

    def _records(self) -> bool:
        """Whether steps are recorded as graphs; says why not where that is a surprise."""
        config, wanted = self.config, self.config.graph == "on" or (self.config.graph == "auto" and self.task.captures)
        why_not = ""
        if not self._late:
            why_not = "weights are shared out (FSDP2)" if self.sharded else "there is no CUDA GPU"
        elif self.accelerator.num_processes > 1:
            why_not = "several processes exchange gradients within a step (DDP)"
        elif config.checkpoint_activations:
            why_not = "checkpoint_activations keeps the state of random numbers, which no graph can"
        elif not self.task.captures:
            why_not = "the steps of this task are not made for it"
        if wanted and why_not and (config.graph == "on" or self._graphs is not None):
            self.print(f"graph: steps are not recorded as CUDA graphs: {why_not}")
        return wanted and not why_not

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups = self.task.groups(self.model, self.config)
        options = {"fused": True, "capturable": self._late}
        return torch.optim.AdamW(groups, lr=self.peak, betas=(0.9, self.config.beta2), **options)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.accelerator.is_main_process

    def print(self, text: str) -> None:
        """Print once, whatever the number of processes."""
        self.accelerator.print(visible_lines(text))

    def _warn(self, text: str) -> None:
        warnings.warn(visible_lines(text), stacklevel=2)

    def bar(self, **options):
        """A progress bar, shown by the main process alone."""
        from tqdm.auto import tqdm

        return tqdm(disable=not self.progress, dynamic_ncols=True, **options)

    def claim_folder(self) -> None:
        """Refuse to mix two runs in one folder; write this run's settings down.

        The main process holds the folder from here to the end of :meth:`run`: no other run gets in.

        Raises:
            ConfigError: the folder holds another run, another process is at work in it, or it cannot be written.
        """
        self.folder.claim()

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """:meth:`claim_folder`, for a task that has more to do after :meth:`run`: the folder is held within."""
        self._keep_folder = True
        try:
            self.claim_folder()
            yield
        finally:
            self._keep_folder = False
            self.folder.release()

    def loader(
        self,
        dataset: Dataset,
        start: int,
        collate_fn: Callable | None = None,
        costs: np.ndarray | None = None,
        order: Order | None = None,
    ) -> DataLoader:
        """Batches of this process from step ``start`` on, of a data set that maps ``(epoch, index)`` to samples.

        Args:
            dataset: its samples are drawn by their keys alone.
            start: steps that lie behind.
            collate_fn: samples to a batch; torch's by default.
            costs: ``[N]``, of each sample; the samples of a step are dealt out so that its batches cost the same.
            order: of the samples; a full shuffle if left out.
        """
        config, accelerator = self.config, self.accelerator
        sampler = StepSampler(
            len(dataset),
            config.batch_size,
            first=start * config.grad_accum,
            last=config.steps * config.grad_accum,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            grad_accum=config.grad_accum,
            costs=costs,
            order=order,
        )
        on_gpu = accelerator.device.type == "cuda"
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=loader_workers(config.workers, on_gpu),
            pin_memory=on_gpu,
            collate_fn=collate_fn,
            worker_init_fn=outlive_notice,
        )

    def run(self) -> TrainingResult:
        """Train to the end, or to SIGTERM or Ctrl-C, from the newest checkpoint if there is one.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the checkpoint is written.
            ConfigError: the data or the images per step are not those of the run that is resumed.
            CheckpointError: there are checkpoints, and none can be read; or one cannot be written.
            TrainingError: a loss or gradient is not finite (state saved under ``failed/``).
        """
        if self.accelerator.mixed_precision != self._precision:  # Accelerate keeps one for the whole process
            raise ConfigError(
                f"precision: a Training with another one than {self.config.precision!r} was made in this process after "
                "this one; run each before the next is made"
            )
        try:
            with naming_lost_processes(self.config.process_timeout, lambda: f"step {self.step + 1}"):
                return self._run()
        finally:
            if not self._keep_folder:
                self.folder.release()

    def _run(self) -> TrainingResult:
        result = TrainingResult()
        self._distribute()
        self.ema = averaged_weights(self.model, self.config.ema)
        self._restore()
        result.start = self.step
        start_trackers(self.accelerator, self.config, self.out, self.step)
        bar = self.bar(total=self.config.steps, initial=self.step, unit="step", desc=self.task.label)
        pace = Pace(self.images_per_step)
        self._under_way = UnderWay(pace, partial(self._record, bar, pace), self._fail)
        with one_opencv_thread():
            batches = iter(self.task.loader(self, self.step))
        try:
            with self.stop.awaited(), bar:
                self._train(batches)
        finally:  # an error that nobody catches keeps the iterator alive, and its workers with it
            getattr(batches, "_shutdown_workers", lambda: None)()
        result.losses, result.finished = self._under_way.losses, self.step == self.config.steps
        if pace.seconds:
            result.seconds_per_step = pace.median
            if advice := pace.advice():
                self.print(advice)
        for tracker in self.accelerator.trackers:  # Accelerate's end_training would part the processes, too
            tracker.finish()
        if self.stop.interrupted:
            self.print(f"saved; go on with resume=auto (--resume auto): {self.out}")
            raise KeyboardInterrupt
        return result

    def sum(self, values: dict[str, int | float | Tensor]) -> dict[str, int | float]:
        """Sums over all processes, which must all call this with the same names."""
        if self.accelerator.num_processes == 1:
            return {k: v.item() if isinstance(v, Tensor) else v for k, v in values.items()}
        device = self.accelerator.device
        row = torch.stack([torch.as_tensor(v, device=device).double() for v in values.values()])
        sums = self.accelerator.reduce(row, "sum").tolist()
        whole = {
            k: not (v.is_floating_point() if isinstance(v, Tensor) else isinstance(v, float)) for k, v in values.items()
        }
        return {k: int(v) if whole[k] else v for k, v in zip(values, sums, strict=True)}

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

    def _distribute(self) -> None:
        """The model on its device and, with several processes, wrapped (DDP) or shared among them (FSDP2)."""
        config = self.config
        if config.checkpoint_activations:
            checkpoint_activations(self.model)
        # of a convolution with one channel; the same numbers lie in the same places
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # Accelerate knows no other name
        if self.sharded:
            shard(self.model, self.accelerator.device, self.accelerator.mixed_precision == "bf16")
            self.wrapped, self.optimizer = self.model, self.accelerator.prepare(self._make_optimizer())
        else:
            self.wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        on_gpu = self.accelerator.device.type == "cuda"
        wanted = {"on": True, "off": False, "auto": on_gpu and self.task.compiles}[config.compile]
        self.called = Compiled(self.wrapped, wanted, self._warn)
        if (count := self.accelerator.num_processes) > 1:
            self.print(f"{count} processes, {'weights shared out (FSDP2)' if self.sharded else 'a copy each (DDP)'}")

    def _restore(self) -> None:
        """Go on from the newest checkpoint; the log loses the lines that it does not cover."""
        state = None
        if self.config.resume == "auto":
            state = resume_latest(self.checkpoints, self.model, self.optimizer, self.ema)
        if state:
            try:
                self._go_on(state)
            except HDXrayError:
                raise
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                at = checkpoint_folder(self.checkpoints, state["step"])
                raise CheckpointError(f"{at}: is damaged, or another task's ({reason_of(error)}); remove it") from error
        if self.sum({"step": self.step})["step"] != self.step * self.accelerator.num_processes:
            raise ConfigError(f"out: not all processes find the same checkpoints in {self.out}; they must share it")
        if self.is_main:
            if self.config.resume == "auto" and not state and (lost := last_step(self.log)):
                self._warn(
                    f"{self.checkpoints}: has no checkpoint, though the log had come to step {lost}; it begins anew"
                )
            self.folder.cut_log(self.step)
            set_aside_after(self.checkpoints, self.step)
            if self.task.data_record is not None:
                self.task.data_record.write(self.out)

    def _go_on(self, state: dict) -> None:
        refuse_other_data(state, self.task.fingerprint, self.task.data_record, self.out)
        if state["images_per_step"] != self.images_per_step:
            raise ConfigError(
                f"batch_size: the run in {self.out} has {state['images_per_step']} images per step "
                f"(batch_size * grad_accum * processes), and not {self.images_per_step}; resume needs the same"
            )
        self.step = state["step"]
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.task.load_state(state["task"])
        self.print(f"resumed at step {self.step} of {self.config.steps}")

    def _train(self, batches: Iterator[dict]) -> None:
        config = self.config
        shape = self.task.of_one_shape if self.captures else lambda read: read
        feed = Feed(batches, config.grad_accum, shape, self.task.to_device, self.accelerator.device)
        step = self._make_step()
        self.wrapped.train()
        stop, paused = False, 0.0
        while self.step < config.steps and not stop:
            began = time.perf_counter()
            self._seed_step()
            rate = self.peak * warmup_cosine(self.step, config.steps, config.warmup)
            micro, waited = feed.take()
            ask = step.run(micro, rate, lambda: self.stop.requested)
            running = Running(self.step + 1, rate, micro, waited, paused, ask)
            self._under_way.add(running)
            if not self._late:
                self._under_way.ask()
            self.step += 1
            done = self.step == config.steps
            if self._late and not done:
                feed.ahead()
            running.seconds = (looked := time.perf_counter()) - began
            running.more = self.task.after_step(self, self.step, done) or {}
            paused = time.perf_counter() - looked
            save = done or self.step % config.save_every == 0
            stop = self._under_way.log(behind=1 if self._late and not save else 0)
            stop = stop or (self.stop.requested and self.accelerator.num_processes == 1)  # several agree on a step
            if save or stop:
                self._under_way.log(behind=0)
                saved = time.perf_counter()
                self._save(checkpoint_folder(self.checkpoints, self.step))
                if self.is_main:
                    prune_checkpoints(self.checkpoints, config.keep_checkpoints, config.keep_every)
                paused += time.perf_counter() - saved

    def _make_step(self) -> StepNow | StepLater:
        config = self.config
        parts = Parts(
            self.accelerator,
            self.task,
            self.model,
            self.called,
            self.wrapped,
            self.optimizer,
            self.ema,
            config.clip_grad,
            self._seed_step,
        )
        if not self._late:
            return StepNow(parts, self.sum)
        return StepLater(parts, self._graphs, self.captures, config.grad_accum, self._warn)

    def _seed_step(self) -> None:
        """What dropout and the like draw depends on the step and the process alone, and so needs no saving."""
        words = [self.config.seed, self.step, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))

    @property
    def numbers(self) -> dict[str, int | float]:
        """What :meth:`Task.loss` had logged in the last step, over all processes; waits for it."""
        self._under_way.ask()
        return self._under_way.numbers

    def _record(self, bar, pace: Pace, line: dict) -> None:
        if self.is_main:
            self.folder.write_line(line)
        self.accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])
        bar.set_postfix(loss=f"{line['loss']:.4f}", **pace.in_words(), refresh=False)
        bar.update()
        self.on_step(line)

    def _save(self, folder: Path, **more) -> None:
        state = {
            "step": self.step,
            "data": self.task.fingerprint,
            "record": None if self.task.data_record is None else self.task.data_record.digest,
            "images_per_step": self.images_per_step,
            "task": self.task.state(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,  # of fp16
            **more,
        }
        files = self.task.json_files(self.model)
        snapshot = take_snapshot(self.model, self.optimizer, self.ema, keep=self.is_main)

        def write() -> None:
            self.folder.flush_log()
            write_checkpoint(folder, snapshot, state, files)

        on_main(self.accelerator, write)

    def _fail(self, running: Running) -> None:
        """Keep the state that led to a loss that is not finite, name the files, and stop."""
        files = [file for batch in running.micro for file in self.task.files(batch)]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            files = gather_object(files)
        passed = self.step - (running.step - 1)  # steps begun since then, none of which changed anything
        self.step -= passed
        if self.ema is not None:
            self.ema.updates -= passed
        folder = checkpoint_folder(self.out / "failed", running.step)
        try:
            self._save(folder, files=files)
            kept = f"The state before this step is in {folder}"
        except HDXrayError as error:
            kept = f"The state before this step could not be kept ({error})"
        raise TrainingError(
            f"step {running.step}: loss {running.outcome.loss}, gradient norm {running.outcome.norm}: not finite. The "
            f"batch: {', '.join(files)}. {kept}; look at the files, or lower lr"
        )
