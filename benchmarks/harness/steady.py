"""What a training loop costs once it is under way: a `Watch` is told of each of its steps, and ends it.

A step lasts from one log line to the next, so that whatever the loop does beside the step counts. CPU time is that of
the whole tree of processes.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

LEAST_STEPS = 5


class Enough(Exception):
    """Raised by a `Watch` that has seen what it needs; ends the loop that told it."""


@dataclass
class Steady:
    """What the counted steps of a loop cost.

    Attributes:
        images: of a step.
        seconds: of each counted step.
        skipped: steps before them.
        waiting: share of the counted time that the loop waited for its images; None if it does not tell.
        main_cpu_seconds: of the process that trains, all its threads, over the counted steps.
        worker_cpu_seconds: of its child processes, likewise.
        peak_bytes: most memory on the device since the loop began; None where that is not known.
    """

    images: int
    seconds: list[float]
    skipped: int
    waiting: float | None
    main_cpu_seconds: float
    worker_cpu_seconds: float
    peak_bytes: int | None = None

    @property
    def cpu_seconds_per_image(self) -> float:
        """Of all processes together."""
        return (self.main_cpu_seconds + self.worker_cpu_seconds) / (self.images * len(self.seconds))

    def facts(self) -> dict[str, Any]:
        """For the row of a table: rates and shares, over all counted steps unless they say otherwise."""
        whole = sum(self.seconds)
        return {
            "batch": self.images,
            "steps_skipped": self.skipped,
            "steps_counted": len(self.seconds),
            "images_per_s_median": self.images / statistics.median(self.seconds),
            "images_per_s_overall": self.images * len(self.seconds) / whole,
            "waiting": self.waiting,
            "cores_busy": (self.main_cpu_seconds + self.worker_cpu_seconds) / whole,
            "cores_busy_workers": self.worker_cpu_seconds / whole,
            "cpu_seconds_per_image": self.cpu_seconds_per_image,
        }


@dataclass
class Watch:
    """Called with the log line of each step of a loop; raises `Enough` when enough steps were counted.

    Attributes:
        images: of a step.
        skip: steps not counted: models are compiled, CUDA graphs recorded, workers begin.
        steps: steps counted.
        limit: seconds from the first line on. At half of them counting begins however many steps lie behind, and after
            them it ends, with `LEAST_STEPS` at least: a slow machine tells what it has.
    """

    images: int
    skip: int
    steps: int
    limit: float = 60.0
    seen: int = 0
    skipped: int | None = None
    seconds: list[float] = field(default_factory=list)
    waits: list[float | None] = field(default_factory=list)

    def __call__(self, line: dict) -> None:
        now = time.perf_counter()
        self.seen += 1
        if self.seen == 1:
            self._first = now
        late = now - self._first
        if self.skipped is None:
            if self.seen >= self.skip or late >= self.limit / 2:
                self.skipped = self.seen
                self._cpu = cpu_seconds()
                self._last = time.perf_counter()
            return
        self.seconds.append(now - self._last)
        self.waits.append(line.get("data_wait_s"))
        self._last = now
        if len(self.seconds) >= self.steps or (late >= self.limit and len(self.seconds) >= LEAST_STEPS):
            self._cpu_end = cpu_seconds()
            raise Enough

    def steady(self, peak_bytes: int | None = None) -> Steady:
        """What was seen.

        Raises:
            RuntimeError: the loop ended before enough steps were counted.
        """
        if not hasattr(self, "_cpu_end"):
            raise RuntimeError(f"the loop ended after {self.seen} steps, of which {len(self.seconds)} were counted")
        told = None not in self.waits
        main, workers = (end - begin for begin, end in zip(self._cpu, self._cpu_end, strict=True))
        return Steady(
            self.images,
            self.seconds,
            self.skipped,
            sum(self.waits) / sum(self.seconds) if told else None,
            main,
            workers,
            peak_bytes,
        )


def cpu_seconds() -> tuple[float, float]:
    """CPU time so far of this process, and of its children and theirs, those included that have ended.

    Raises:
        ModuleNotFoundError: psutil is missing, which comes with Accelerate.
    """
    import psutil

    this = psutil.Process()
    own, children = this.cpu_times(), 0.0
    for child in this.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:  # it has just ended; if it was waited for, it counts below
            continue
        children += times.user + times.system + times.children_user + times.children_system
    return own.user + own.system, children + own.children_user + own.children_system
