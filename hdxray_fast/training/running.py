"""Steps under way: asked for, and not yet written into the log; on a GPU, the last one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .pace import Pace
from .step import Outcome


@dataclass
class Running:
    """A step that has been asked for: what is known at once, and what is learned later."""

    step: int
    rate: float
    micro: list[dict]
    waited: float  # seconds that the host waited for its images
    paused: float  # seconds between the step before and this one that went into validation, checkpoints and the like
    ask: Callable[[], Outcome]
    outcome: Outcome | None = None
    more: dict = field(default_factory=dict)
    seconds: float = math.nan  # of the host

    def times(self) -> tuple[float, float]:
        """Seconds of the step, and how many of them went by because its images were not there."""
        if self.outcome.busy is None:
            return self.seconds, self.waited
        idle = max(0.0, self.outcome.idle - self.paused)
        return self.outcome.busy + idle, min(self.waited, idle)


class UnderWay:
    """The steps that are under way, in their order.

    Args:
        pace: is told their times.
        write: takes the log line of a step, once it is known.
        fail: takes a step that was not finite; raises.

    Attributes:
        numbers: what :meth:`.Task.loss` had logged in the last step that is known.
        losses: of all steps that are logged.
    """

    def __init__(self, pace: Pace, write: Callable[[dict], None], fail: Callable[[Running], None]) -> None:
        self._pace, self._write, self._fail = pace, write, fail
        self._running: deque[Running] = deque()
        self.numbers: dict[str, int | float] = {}
        self.losses: list[float] = []

    def add(self, running: Running) -> None:
        """One more."""
        self._running.append(running)

    def ask(self) -> None:
        """Wait until it is known how they went."""
        for running in self._running:
            self._ask(running)

    def log(self, behind: int) -> set[str]:
        """Have the lines of all but the last ``behind`` written; the flags that came with their numbers."""
        raised: set[str] = set()
        while len(self._running) > behind:
            running = self._running[0]
            self._ask(running)
            self._running.popleft()
            outcome = running.outcome
            raised |= outcome.raised
            seconds, waited = running.times()
            self._pace.add(seconds, waited)
            self.losses.append(outcome.loss)
            self._write({
                "step": running.step,
                "loss": outcome.loss,
                "lr": running.rate,
                "grad_norm": outcome.norm,
                **outcome.numbers,
                "images_per_s": round(self._pace.images / seconds, 4),
                "data_wait_s": round(waited, 4),
                **running.more,
            })  # fmt: skip
        return raised

    def _ask(self, running: Running) -> None:
        if running.outcome is None:
            running.outcome = running.ask()
            self.numbers = running.outcome.numbers
            if not running.outcome.finite:
                self._fail(running)
