"""Experiments in slices: work that is cut into units, for as long as a machine is lent, and gone on with next time.

A slice ends between two units, or within a training, which then stops as on SIGTERM: after the step at hand, with a
checkpoint. Every slice takes at least one step or unit, so that any number of slices comes to an end.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hdxray_fast import HDXrayError
from hdxray_fast.files import written_whole
from hdxray_fast.regular_files import RUN_JSON, read_json

STOPPED = 75  # exit status of a slice that leaves something to do: EX_TEMPFAIL, "try again"
RECORD = "experiment.json"


@dataclass(frozen=True)
class Unit:
    """A part of an experiment.

    Attributes:
        name: for the terminal.
        is_done: whether nothing is left to do; asked again after ``work``.
        work: does it, or a part of it that is kept.
    """

    name: str
    is_done: Callable[[], bool]
    work: Callable[[], object]


class Slice:
    """A stretch of time.

    Args:
        seconds: after which no unit is begun and a training stops; what reads files or fits a probe ends first. Without
            end if left out.
        clock: in seconds.
    """

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock, self._began = seconds, clock, clock()

    def is_over(self) -> bool:
        return self.seconds is not None and self._clock() - self._began >= self.seconds

    def on_step(self, line: dict) -> None:
        """What a training of this package calls after each step; tells it to stop when the time is over."""
        if self.is_over():
            signal.raise_signal(signal.SIGTERM)

    def work(self, units: Sequence[Unit]) -> None:
        """Do what is not done.

        Raises:
            SystemExit: with ``STOPPED``, if the time was over before all was done, or a training was told to stop.
        """
        left = [unit for unit in units if not unit.is_done()]
        for number, unit in enumerate(left):
            print(f"{unit.name}: {len(units) - len(left) + number} of {len(units)} parts are done", flush=True)
            unit.work()
            within = not unit.is_done()
            if within or (self.is_over() and unit is not left[-1]):
                done = len(units) - len(left) + number + (not within)
                print(f"stopped with {done} of {len(units)} parts done; the same command goes on", flush=True)
                raise SystemExit(STOPPED)


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """What every experiment that trains is told."""
    parser.add_argument("--labels", required=True, help="CSV manifest; splits that it lacks are drawn by patient")
    parser.add_argument("--images", help="folder that relative paths in the manifest start from")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="may grow in a later call")
    parser.add_argument("--workers", type=int, default=-1, help="processes that read files")
    parser.add_argument(
        "--seconds", type=float,
        help=f"stop after about so many, with exit status {STOPPED}; the same command goes on",
    )  # fmt: skip


def begin(out: Path, settings: dict, runs: str) -> None:
    """Write down what an experiment is made with, or hold it against what it was begun with.

    Args:
        out: folder of the experiment; made if needed.
        settings: JSON-able, all that a finished run's numbers hang on.
        runs: pattern of the folders of its runs.

    Raises:
        SystemExit: the folder holds runs that were made with others: they would be shown as if they were these.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    before = recorded(out)
    if before is None:
        if any(out.glob(runs)):
            raise SystemExit(
                f"{out}: holds runs and no {RECORD} that says what they were made with; choose another --out"
            )
        with written_whole(out / RECORD) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return
    names = sorted({name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name)})
    if names:
        raise SystemExit(
            f"{out}: was begun with other settings ({', '.join(names)}; see {RECORD}); give the same, or another --out"
        )


def recorded(out: Path) -> dict | None:
    """What an experiment was begun with; ``None`` if the folder says nothing.

    Raises:
        SystemExit: the record cannot be read.
    """
    path = out / RECORD
    if not path.exists():
        return None
    try:
        found = read_json(path, RUN_JSON)
    except (OSError, ValueError, HDXrayError) as error:
        raise SystemExit(f"{path}: cannot be read ({error}); put it back, or choose another --out") from error
    if not isinstance(found, dict):
        raise SystemExit(f"{path}: is no record of an experiment; put it back, or choose another --out")
    return found
