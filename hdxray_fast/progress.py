"""How far work is and what is noted on the way, on stderr: a bar for who looks on, lines for a log."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .terminal import plural

EVERY = 30  # seconds between two lines of a log


def note(text: str) -> None:
    """Print a line that is no result, above bars where there are some."""
    if "tqdm" in sys.modules and is_watched():
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Within, a warning of this package is a note, without the line of code that gave it; others stay as they are."""
    others = warnings.formatwarning

    def formatwarning(message, category, filename, lineno, line=None) -> str:
        if not Path(filename).is_relative_to(Path(__file__).parent):
            return others(message, category, filename, lineno, line)
        note(f"warning: {message}")
        return ""

    warnings.formatwarning = formatwarning
    try:
        yield
    finally:
        warnings.formatwarning = others


def is_watched() -> bool:
    """Whether stderr is a terminal, or a notebook's cell: where a bar can be drawn."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or hasattr(shell, "kernel")


def progress_bar(total: int, label: str, unit: str = "image", *, done: int = 0, show: bool = True, leave: bool = True):
    """Tells how much of some work is done: counts what has ended, not what has begun.

    Args:
        total: all of it.
        label: what it is.
        unit: of what ``total`` are so many.
        done: so many had ended before.
        show: whether it is told at all.
        leave: whether a bar stays when all is done.

    Returns:
        A context manager with ``update(count=1)`` and ``set_postfix(words)``: a bar of tqdm, or :class:`LogLines` where
        nobody looks on or tqdm is not installed.
    """
    if show and is_watched():
        try:
            from tqdm.auto import tqdm
        except ImportError:
            pass
        else:
            options = {"dynamic_ncols": True, "leave": leave, "smoothing": 0.1}
            return tqdm(total=total, desc=label, unit=unit, initial=done, file=sys.stderr, **options)
    return LogLines(total, label, unit, done, show)


class LogLines:
    """A line every ``EVERY`` seconds, and one at the end; arguments as of :func:`progress_bar`."""

    def __init__(self, total: int, label: str, unit: str, done: int, show: bool) -> None:
        self.total, self.label, self.unit, self.done, self.show = total, label, unit, done, show
        self._words, self._before, self._said = "", done, done
        self._began = self._last = time.monotonic()

    def __enter__(self) -> LogLines:
        return self

    def __exit__(self, *error: object) -> None:
        if self.done != self._said:
            self._say()

    def update(self, count: int = 1) -> None:
        """So many more have ended."""
        self.done += count
        if time.monotonic() - self._last >= EVERY:
            self._say()

    def set_postfix(self, words: Mapping[str, Any] | None = None, refresh: bool = True, **more: Any) -> None:
        """What else the next line says; ``refresh`` is tqdm's."""
        self._words = "".join(f", {name} {value}" for name, value in {**(words or {}), **more}.items())

    def _say(self) -> None:
        self._last, self._said = time.monotonic(), self.done
        seconds, new = self._last - self._began, self.done - self._before
        left = f", {_in_words(seconds / new * (self.total - self.done))} left" if new and self.done < self.total else ""
        if self.show:
            units = self.unit if self.total == 1 else plural(self.unit)
            note(f"{self.label}: {self.done} of {self.total} {units} after {_in_words(seconds)}{left}{self._words}")


def _in_words(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
