"""When a run's checkpoints are saved, and the thread that writes them while training goes on.

PyTorch's own asynchronous checkpoints (``torch.distributed.checkpoint.async_save``) are not used: they write a file for
each process, for a loader of their own. Here a checkpoint is the same files whoever trained, and a model to load.
"""

from __future__ import annotations

import copy
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from ..errors import HDXrayError, TrainingError
from ..ranks import MAIN_FAILED, on_main
from ..terminal import visible_lines
from .checkpoints import checkpoint_folder, prune_checkpoints, take_snapshot, write_checkpoint
from .config import TrainingConfig
from .kept import Kept
from .running import Running


class Background:
    """One piece of work at a time in a thread of its own; what fails there is kept until somebody asks.

    Attributes:
        failure: of the last piece of work, until it is raised.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self.failure: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether the last piece of work is under way."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, work: Callable[[], None]) -> None:
        """Once the piece before is done, begin this one; after a failure that is not raised yet, do not."""
        self.join()
        if self.failure is None:
            # a daemon: after a second Ctrl-C while a disk hangs, the process ends, and what was begun is no checkpoint
            self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint", daemon=True)
            self._thread.start()

    def join(self) -> None:
        """Wait for the end of the work."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def raise_failure(self) -> None:
        """Raise what failed, if anything did; once."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.failure = error


class Clock:
    """Tells when so many minutes have passed.

    Args:
        minutes: 0 for never.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        self._began = time.monotonic()

    @property
    def over(self) -> bool:
        return self._seconds > 0 and time.monotonic() - self._began >= self._seconds


class Saves:
    """The checkpoints of a run: due by the clock, by steps, at a stop and at the end.

    The main process looks at the clock and writes; the others learn of both by the flags that go with the numbers of
    each step (:meth:`flags`), so that all save after the same step, and nobody waits for anybody to find out.

    Args:
        training: the run.
    """

    def __init__(self, training: Kept) -> None:
        self._training, config = training, training.config
        self._clock, self._thread = Clock(config.save_minutes), Background()

    def begin(self) -> None:
        """The run begins now."""
        self._clock.restart()

    def flags(self) -> dict[str, int]:
        """``save``: a checkpoint is due by the clock; ``unwritten``: one could not be written. Of the main process.

        While a checkpoint is being written none is due: a slow disk is written to as often as it can be.
        """
        return {
            "save": int(self._training.is_main and self._clock.over and not self._thread.busy),
            "unwritten": int(self._thread.failure is not None),
        }

    def tell(self) -> None:
        """Once ``unwritten`` is known to all of them: every process ends.

        Raises:
            CheckpointError, TrainingError: what failed, on the main process, and that something did on the others.
        """
        self._thread.raise_failure()
        raise TrainingError(MAIN_FAILED)

    def save(self, wait: bool) -> None:
        """Keep the state after the step at hand; every process must call this after the same step.

        Args:
            wait: until it is written, as at the end; otherwise a thread writes it.

        Raises:
            CheckpointError, TrainingError: with ``wait``, it or the one before could not be written.
        """
        training = self._training
        config, root = training.config, training.checkpoints
        curves = training.curves.taken() if training.is_main else {}

        def after() -> None:  # in the thread that writes, so that nobody waits for a picture
            _prune(root, config)
            training.curves.draw(curves)

        self._write(checkpoint_folder(root, training.step), {}, wait, after)
        self._clock.restart()

    def fail(self, running: Running) -> None:
        """Keep the state that led to a loss that is not finite, name the files, and stop.

        Raises:
            TrainingError: always.
        """
        training = self._training
        files = [file for batch in running.micro for file in training.task.files(batch)]
        if training.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            files = gather_object(files)
        passed = training.step - (running.step - 1)  # steps begun since then, none of which changed anything
        training.step -= passed
        if training.ema is not None:
            training.ema.updates -= passed
        folder = checkpoint_folder(training.out / "failed", running.step)
        try:
            self._write(folder, {"files": files}, True, lambda: None)
            kept = f"The state before this step is in {folder}"
        except HDXrayError as error:
            kept = f"The state before this step could not be kept ({error})"
        raise TrainingError(
            f"step {running.step}: loss {running.outcome.loss}, gradient norm {running.outcome.norm}: not finite. The "
            f"batch: {', '.join(files)}. {kept}; look at the files, or lower lr"
        )

    def close(self) -> None:
        """The run ends, in whatever way: wait for what is being written."""
        self._thread.join()
        if self._thread.failure is not None:
            warnings.warn(visible_lines(str(self._thread.failure)), stacklevel=2)

    def _write(self, folder: Path, more: dict, wait: bool, after: Callable[[], None]) -> None:
        training, task = self._training, self._training.task
        record, scaler = task.data_record, training.accelerator.scaler
        state = {
            "step": training.step,
            "steps": training.config.steps,
            "data": task.fingerprint,
            "record": None if record is None else record.digest,
            "images_per_step": training.images_per_step,
            "task": task.state(),
            "scaler": scaler.state_dict() if scaler else None,  # of fp16
            **more,
        }
        # a task may give lists that it goes on adding to
        state, files = copy.deepcopy(state), copy.deepcopy(task.json_files(training.model))
        patience = training.config.process_timeout
        on_main(self._thread.join, patience)  # its snapshot is gone before there is another
        snapshot = take_snapshot(training.model, training.optimizer, training.ema, keep=training.is_main)

        def write() -> None:
            training.folder.flush_log()
            write_checkpoint(folder, snapshot, state, files)
            after()

        def at_once() -> None:
            self._thread.raise_failure()
            write()

        if wait:
            on_main(at_once, patience)
        elif training.is_main:
            self._thread.begin(write)


def _prune(root: Path, config: TrainingConfig) -> None:
    prune_checkpoints(root, config.keep_checkpoints, config.keep_every, config.common_steps(config.steps))
