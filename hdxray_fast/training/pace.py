"""How fast a run goes, and what it waits for."""

from __future__ import annotations

import statistics
from collections import deque

RECENT = 50  # steps that the progress bar tells of
SLOW = 0.1  # share of the time that is worth a word


class Pace:
    """Times of a run's steps.

    Args:
        images: of a step, over all processes.

    Attributes:
        seconds: of each step.
    """

    def __init__(self, images: int) -> None:
        self.images, self.seconds = images, []
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def add(self, seconds: float, waiting: float) -> None:
        """A step took so long; ``waiting`` of it went by before its images were there."""
        self.seconds.append(seconds)
        self._recent.append((seconds, waiting))

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median_high(self.seconds)

    @property
    def images_per_s(self) -> float:
        """Of the last steps: their median, which one slow step does not move."""
        return self.images / statistics.median(seconds for seconds, _ in self._recent)

    @property
    def waiting(self) -> float:
        """Share of the last steps' time that went by before their images were there."""
        return sum(waiting for _, waiting in self._recent) / sum(seconds for seconds, _ in self._recent)

    def in_words(self) -> dict[str, str]:
        """For a progress bar: the rate, and the waiting where it is worth a word."""
        words = {"images_per_s": f"{self.images_per_s:.2f}"}
        if self.waiting >= SLOW:
            words["waiting_for_data"] = f"{self.waiting:.0%}"
        return words

    def advice(self) -> str:
        """What to do about a loader that is the limit; empty if it is not."""
        if len(self.seconds) < RECENT or self.waiting < SLOW:
            return ""
        return f"waited for data {self.waiting:.0%} of the time; give more --workers, or prepare the images"
