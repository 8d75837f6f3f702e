"""The folder of a run: who may be at work in it, its settings, and a log that never disagrees with its checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..data.seen_key import KEY_FILE, check_key
from ..errors import ConfigError, TrainingError
from ..files import claim_names, flush, place_of, refuse_foreign, remove_leftovers, written_whole
from ..locks import RunLock
from ..ranks import on_main
from ..regular_files import RUN_JSON, read_json
from .checkpoints import OF_A_SAVE, checkpoint_folders, set_aside_after
from .config import TrainingConfig
from .curves import CURVES
from .data_record import RECORD, DataRecord
from .resuming import ANEW, how_it_goes_on
from .run_log import last_step, truncate_log

Config = TypeVar("Config", bound=TrainingConfig)
LOG, CHECKPOINTS, SETTINGS = "log.jsonl", "checkpoints", "config.json"
WRITES = (
    *(SETTINGS, LOG, CHECKPOINTS, "failed", RECORD, "tensorboard", "wandb", "unreadable.csv", "cache", "model"),
    CURVES,
)
PATHS = ("data", "images", "weights", "prepared")  # settings that name files
MODELS = ("weights", "tokenizer", "language_model")  # settings that may name a run, for what is in its folder
KEPT = ("cache", KEY_FILE)  # of a folder that is made anew: images as they were read, and what patients are told by
# Folders of which a run makes what is called so, beside whatever people put there
BY_STEP = (CHECKPOINTS, "failed", "pictures")
OF_A_STEP = re.compile(r"((damaged|ended)_)?step_\d+(\.png)?|\.step_\d+(\.png)?(\.\d+\.[0-9a-f]{16})?\.tmp")
# settings that the runs of every release have written down; nobody else's file holds all of them by chance
OF_EVERY_RUN = frozenset({
    "out", "steps", "batch_size", "grad_accum", "lr", "weight_decay", "beta2", "warmup", "clip_grad", "ema",
    "precision", "shard", "checkpoint_activations", "timeout", "seed", "workers", "threads", "save_every",
    "keep_checkpoints", "keep_every", "tensorboard", "wandb", "resume",
})  # fmt: skip


class RunFolder:
    """The folder of a run.

    Args:
        config: all settings; ``config.out`` names the folder.
        maker: the command.
        writes: names that it writes here besides those of every run.

    Attributes:
        path: of the folder.
        log: of the loss log, a line of JSON per step.
        checkpoints: of their folder.
    """

    def __init__(self, config: TrainingConfig, maker: str, writes: Sequence[str] = ()) -> None:
        self.config, self.path = config, Path(config.out)
        self._maker, self._writes = maker, (*WRITES, *writes)
        self.log, self.checkpoints, self.settings = (self.path / name for name in (LOG, CHECKPOINTS, SETTINGS))
        self._lock = RunLock(self.path)

    def claim(self) -> None:
        """Hold it, as long as no other run is in it, or empty it of one; write the settings of a new run down. Every
        process must call this.

        Raises:
            ConfigError: it holds another run or files of the same names that no run made, another process is at work
                in it, or it cannot be written.
        """
        on_main(self._claim, self.config.process_timeout)

    def _claim(self) -> None:
        refuse_foreign(self.path, self._maker, self._writes, is_run(self.path))  # no lock is left in others' folders
        self._lock.acquire()
        try:
            refuse_foreign(self.path, self._maker, self._writes, is_run(self.path))
            if self.config.force:
                self._clear()
            else:
                self._refuse_another_run()
            self._make_ready()
            if not _holds_a_run(self.path) or not self.settings.exists():
                self._write_settings()
        except BaseException:
            self._lock.release()
            raise

    def empty(self) -> None:
        """Remove what an earlier run wrote here, if one did; as :meth:`claim` does with ``force``, for one process.

        Raises:
            ConfigError: as :meth:`claim`.
        """
        if self.path.exists():
            refuse_foreign(self.path, self._maker, self._writes, is_run(self.path))
            with self._lock:
                self._clear()

    def release(self) -> None:
        """Let others in."""
        self._lock.release()

    def _refuse_another_run(self) -> None:
        if not _holds_a_run(self.path):
            return
        begun = self._refuse_other_settings()
        if self.config.resume == "never":
            raise ConfigError(
                f"out: {self.path} already holds a run; {how_it_goes_on('never')}, {ANEW}, or choose another folder"
            )
        steps = begun.get("steps") if type(begun.get("steps")) is int else self.config.steps
        is_finished = (self.path / "model").exists() and last_step(self.log) >= steps
        if is_finished and not checkpoint_folders(self.checkpoints):  # whose model would be trained over
            raise ConfigError(
                f"out: the run in {self.path} is finished and its {CHECKPOINTS} were removed, so there is nothing to "
                f"go on from; {ANEW} and replaces its model, or choose another folder"
            )

    def _refuse_other_settings(self) -> dict:
        """What the run was begun with; nothing if its settings are gone, of which a warning tells."""
        try:
            found = read_json(self.settings, RUN_JSON)
            if not isinstance(found, dict):
                raise ValueError("it holds no object")
        except FileNotFoundError:
            warnings.warn(
                f"{self.settings}: is missing, so nobody can tell whether the run was begun with these settings; it "
                "goes on with them",
                stacklevel=2,
            )
            return {}
        except ValueError as error:
            raise ConfigError(f"out: {self.settings} is damaged ({error}); choose another folder") from error
        if differences := self.config.differences(found):
            raise ConfigError(
                f"out: {self.path} holds a run with other settings ({'; '.join(differences)}); "
                f"it goes on with the same ones; {ANEW}, or choose another folder"
            )
        return found

    def _clear(self) -> None:
        """Remove what an earlier run wrote here, checkpoints first: what is left after a kill goes on with nothing."""
        names = [CHECKPOINTS, *(name for name in self._writes if name not in (CHECKPOINTS, *KEPT))]
        # of earlier releases
        names += ["quarantine.csv", *(path.name for path in self.path.glob("unreadable.[0-9]*.csv"))]
        by_step = [self.path / name for name in names if name in BY_STEP and (self.path / name).is_dir()]
        try:
            gone = [path for folder in by_step for path in sorted(folder.iterdir()) if OF_A_STEP.fullmatch(path.name)]
            gone += [path for path in map(self.path.joinpath, names) if path not in by_step]
            self._refuse_to_lose_a_source(gone)
            claim_names(self.path, self._maker, self._writes, is_run(self.path))
            for path in gone:
                _remove(path)
            for folder in by_step:
                with suppress(OSError):  # what is not the run's stays, and so does a link
                    folder.rmdir()
        except OSError as error:
            raise ConfigError(f"out: cannot remove {place_of(error, self.path)} ({error.strerror})") from error

    def _refuse_to_lose_a_source(self, gone: Sequence[Path]) -> None:
        for setting in dict.fromkeys((*PATHS, *MODELS)):
            given = getattr(self.config, setting, None)
            for path in given if isinstance(given, list) else [given]:
                inside = next((one for one in gone if path and _lies_in(path, one)), None)
                if inside or (path and setting in MODELS and _lead_to_one(str(path), str(self.path))):
                    raise ConfigError(
                        f"{setting}: {path} {f'lies in {inside}' if inside else 'is the run'}, which "
                        "--force (force=True) would remove; choose another out"
                    )

    def _make_ready(self) -> None:
        if KEY_FILE in self._writes:
            check_key(self.path)
        claim_names(self.path, self._maker, self._writes, is_run(self.path))
        try:
            if self.settings.exists():  # this run's own folder, and not one that holds other things too
                for folder in (self.path, self.path / "model", self.path / "cache"):
                    remove_leftovers(folder)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out: cannot write to {place_of(error, self.path)} ({error.strerror})") from error

    def _write_settings(self) -> None:
        try:
            with written_whole(self.settings) as temporary:
                temporary.write_text(json.dumps(self.config.as_dict(), indent=1))
        except OSError as error:
            raise ConfigError(f"out: cannot write to {place_of(error, self.path)} ({error.strerror})") from error

    def write_line(self, line: dict) -> None:
        """Add a line to the log.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def flush_log(self) -> None:
        """Before a checkpoint: one that outlives a power loss must find the lines of its steps.

        Raises:
            TrainingError: the log cannot be written.
        """
        if not self.log.exists():
            return
        try:
            flush(self.log)
            flush(self.path)  # the log's name
        except OSError as error:
            raise self._unwritable(error) from error

    def begin(self, step: int, record: DataRecord | None, why: str = "damaged") -> None:
        """Before a run goes on from ``step``: nothing that lies after it is left; its settings, which are those it goes
        on with now that nothing has refused them, and its data are written down.

        ``why`` checkpoints after it are passed over, as a word before their names.
        """
        self._write_settings()
        self.cut_log(step)
        set_aside_after(self.checkpoints, step, why)
        if record is not None:
            record.write(self.path)

    def cut_log(self, step: int) -> None:
        """Before a run goes on from ``step``: the log loses what lies after it; a warning names what it lacks."""
        missing = truncate_log(self.log, step)
        if missing:
            warnings.warn(
                f"{self.log}: has no line of step {in_words(missing)}, lost with the power or removed; the checkpoint "
                f"of step {step} is whole, and the run goes on from it",
                stacklevel=2,
            )

    def _unwritable(self, error: OSError) -> TrainingError:
        return TrainingError(f"{self.log}: cannot be written ({error.strerror})")


def begun_settings(config: TrainingConfig) -> dict | None:
    """Settings that the run which ``config`` goes on with was begun with.

    Returns:
        What ``config.json`` holds; ``None`` if there is no such run, or if that cannot be read: a run's start says so.
    """
    folder = Path(config.out)
    if not config.goes_on or not _holds_a_run(folder):
        return None
    try:
        found = read_json(folder / SETTINGS, RUN_JSON)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def as_begun(config: Config) -> Config:
    """The settings, with data and weights called as in the run that they go on with, where both names lead to one.

    So a folder may be given by its full path, or by a link to it, and images keep the names that the run knows them by.
    """
    begun = begun_settings(config) or {}
    given = {name: getattr(config, name) for name in PATHS if hasattr(config, name)}
    return replace(config, **{name: begun[name] for name in given if _lead_to_one(given[name], begun.get(name))})


def _lead_to_one(*paths: object) -> bool:
    if all(isinstance(path, list) for path in paths):
        return len({len(path) for path in paths}) == 1 and all(map(_lead_to_one, *paths))
    try:
        return all(isinstance(path, str) for path in paths) and os.path.samefile(*paths)
    except (OSError, ValueError):  # there is no such file, or can be none
        return False


def _lies_in(path: str, folder: Path) -> bool:
    try:
        return Path(path).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):
        return False


def _remove(path: Path) -> None:
    """A file or folder; of a folder that is linked here what it holds, for people put large ones on another disk. No
    link in it is followed."""
    linked = path.is_symlink() and path.is_dir()
    for one in path.iterdir() if linked else [path]:
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one)
        else:
            one.unlink(missing_ok=True)


def is_run(folder: Path) -> bool:
    """Whether what lies in a folder is a run's, also of a release that left no mark: as its settings or checkpoints
    show. A log does not, since anything may be called so."""
    try:
        found = read_json(folder / SETTINGS, RUN_JSON)
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and found.keys() >= OF_EVERY_RUN:
        return True
    saved = checkpoint_folders(folder / CHECKPOINTS)
    return any(all((one / name).is_file() for name in OF_A_SAVE) for one in saved)


def _holds_a_run(folder: Path) -> bool:
    return (folder / LOG).exists() or bool(checkpoint_folders(folder / CHECKPOINTS))


def in_words(numbers: Sequence[int]) -> str:
    """Ascending numbers: ``3, 7 to 10``."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in ranges)
