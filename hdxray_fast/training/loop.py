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

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.order import Order
from ..data.sampler import StepSampler
from ..errors import ConfigError
from ..ops.compiled import Compiled
from ..progress import note, progress_bar
from ..ranks import naming_lost_processes, on_main
from ..terminal import visible_lines
from .checkpoints import whole_state
from .config import TrainingConfig
from .curves import CURVES, Curves
from .graphs import graphs_for, why_not_recorded
from .late import Feed
from .optimizer import averaged_weights
from .pace import Pace
from .processes import (
    checkpoint_activations,
    launcher_shards,
    loader_workers,
    make_accelerator,
    one_opencv_thread,
    outlive_notice,
    shard,
    shard_mesh,
    sum_over,
)
from .restoring import go_on
from .resuming import how_it_goes_on
from .run_folder import RunFolder
from .run_log import lines_of
from .running import Running, UnderWay
from .saving import Saves
from .step import Parts, StepLater, StepNow
from .stop import StopNotice
from .task import Task
from .trackers import check_trackers, start_trackers


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
    losses: list[float] = field(default_factory=list, repr=False)
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
        if config.shard_within == "node" and not sharded:
            raise ConfigError("shard_within: node says who shares weights, and nobody does; add shard (--shard true)")
        check_trackers(config)
        self.accelerator = make_accelerator(config.precision, config.process_timeout, config.device)
        self._made_for = self.accelerator.mixed_precision, self.accelerator.device
        self.sharded = sharded and self.accelerator.num_processes > 1
        if self.sharded and config.precision == "fp16":
            raise ConfigError("precision: fp16 and shard do not go together; accepted with shard are bf16 and fp32")
        if config.threads:  # after Accelerate, which sets them too
            torch.set_num_threads(config.threads)
        self.config, self.task, self.on_step = config, task, on_step or (lambda line: None)
        self.folder = RunFolder(config, task.label.replace(" ", "-"), task.writes)
        self._keep_folder = False
        self.out, self.log, self.checkpoints = self.folder.path, self.folder.log, self.folder.checkpoints
        self.progress = progress and self.is_main
        self.images_per_step = config.batch_size * config.grad_accum * self.accelerator.num_processes
        self.step = 0
        self._told: dict[str, str] = {}  # of the last validation, for the bar
        self.curves = Curves(self.out / CURVES)
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
        processes = self.accelerator.num_processes
        why_not = why_not_recorded(
            self._late, self.sharded, processes, config.checkpoint_activations, self.task.captures
        )
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
        """Note something once, whatever the number of processes."""
        if self.is_main:
            note(visible_lines(text))

    def _warn(self, text: str) -> None:
        warnings.warn(visible_lines(text), stacklevel=2)

    def bar(self, total: int, label: str, unit: str = "image", done: int = 0, leave: bool = True):
        """How far work is, told by the main process alone; arguments as of :func:`.progress_bar`."""
        return progress_bar(total, label, unit, done=done, show=self.progress, leave=leave)

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
        # Accelerate keeps one of each for the whole process
        if (self.accelerator.mixed_precision, self.accelerator.device) != self._made_for:
            raise ConfigError("precision, device: a Training with others was made here since; run each before the next")
        try:
            again = f"start all of them again; {how_it_goes_on(self.config.resume, self.config.force)}"
            with naming_lost_processes(self.config.process_timeout, lambda: f"step {self.step + 1}", again):
                return self._run()
        finally:
            if not self._keep_folder:
                self.folder.release()

    def _run(self) -> TrainingResult:
        result = TrainingResult()
        self._distribute()
        self.ema = averaged_weights(self.model, self.config.ema)
        ended = "ended" if self.config.goes_on and go_on(self) else "damaged"
        on_main(lambda: self.folder.begin(self.step, self.task.data_record, ended), self.config.process_timeout)
        if self.is_main:
            self.curves.add_all(lines_of(self.log) if self.step else ())
        result.start, self._saves = self.step, Saves(self)
        start_trackers(self.accelerator, self.config, self.out, self.step)
        bar = self.bar(self.config.steps, self.task.label, "step", self.step)
        pace = Pace(self.images_per_step)
        self._under_way = UnderWay(pace, partial(self._record, bar, pace), self._saves.fail)
        with one_opencv_thread():
            batches = iter(self.task.loader(self, self.step))
        try:
            with self.stop.awaited(), bar:
                self._train(batches)
        finally:
            self._saves.close()
            # an error that nobody catches keeps the iterator alive, and its workers with it
            getattr(batches, "_shutdown_workers", lambda: None)()
        result.losses, result.finished = self._under_way.losses, self.step == self.config.steps
        if pace.seconds:
            result.seconds_per_step = pace.median
            if advice := pace.advice():
                self.print(advice)
        for tracker in self.accelerator.trackers:  # Accelerate's end_training would part the processes, too
            tracker.finish()
        if self.stop.interrupted:
            self.print(f"saved: {self.out}")
            raise KeyboardInterrupt
        return result

    def sum(self, values: dict[str, int | float | Tensor]) -> dict[str, int | float]:
        """Sums over all processes, which must all call this with the same names."""
        return sum_over(self.accelerator, values)

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
            device, bf16 = self.accelerator.device, self.accelerator.mixed_precision == "bf16"
            shard(self.model, device, bf16, shard_mesh(device, config.shard_within))
            self.wrapped, self.optimizer = self.model, self.accelerator.prepare(self._make_optimizer())
        else:
            self.wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        on_gpu = self.accelerator.device.type == "cuda"
        wanted = {"on": True, "off": False, "auto": on_gpu and self.task.compiles}[config.compile]
        self.called = Compiled(self.wrapped, wanted, self._warn)
        if (count := self.accelerator.num_processes) > 1:
            within = " within each node" if config.shard_within == "node" else ""
            how = f"weights shared out{within} (FSDP2)" if self.sharded else "a copy each (DDP)"
            self.print(f"{count} processes, {how}")

    def _train(self, batches: Iterator[dict]) -> None:
        config = self.config
        shape = self.task.of_one_shape if self.captures else lambda read: read
        feed = Feed(batches, config.grad_accum, shape, self.task.to_device, self.accelerator.device)
        step = self._make_step()
        self.wrapped.train()
        stop, paused, alone = False, 0.0, self.accelerator.num_processes == 1
        common = config.common_steps(config.steps)
        self._saves.begin()
        while self.step < config.steps and not stop:
            began = time.perf_counter()
            self._seed_step()
            rate = self.peak * config.rate(self.step)
            micro, waited = feed.take()
            ask = step.run(micro, rate, self._flags)
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
            raised = self._under_way.log(behind=1 if self._late and not done else 0)
            if alone:  # several act on the flags of a step that is behind, and so after the same step
                raised |= {name for name, count in self._flags().items() if count}
            if "unwritten" in raised:
                self._saves.tell()
            stop = "stop" in raised
            due = bool(config.save_every and self.step % config.save_every == 0) or self.step == common
            if done or stop or due or "save" in raised:
                self._under_way.log(behind=0)  # only of what is known to be finite
                saved = time.perf_counter()
                if done or not stop:  # who stops has little time
                    self.task.at_save(self, self.step)
                self._saves.save(wait=done or stop)
                paused += time.perf_counter() - saved

    def _flags(self) -> dict[str, int]:
        """What this process wants all of them to know, with the numbers of a step."""
        return {"stop": int(self.stop.requested), **self._saves.flags()}

    def _make_step(self) -> StepNow | StepLater:
        config = self.config
        trained = (self.model, self.called, self.wrapped, self.optimizer, self.ema)
        parts = Parts(self.accelerator, self.task, *trained, config.clip_grad, self._seed_step)
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
            self.curves.add(line)
        self.accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])
        if "val_loss" in line:
            self._told = {"val_loss": f"{line['val_loss']:.4f}"}
        bar.set_postfix(loss=f"{line['loss']:.4f}", **self._told, **pace.in_words(), refresh=False)
        bar.update()
        self.on_step(line)
