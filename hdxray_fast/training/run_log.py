"""What the log of a run tells of it, a line of JSON per step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..files import written_whole
from ..regular_files import open_regular, parse_json

LONGEST = 1 << 16  # characters of a line; a file without line ends is no log


def last_step(log: Path) -> int:
    """The last step that ``log.jsonl`` has a line of; 0 where it has none, or cannot be read."""
    try:
        return max((step for step, _ in _lines(log)), default=0)
    except OSError:
        return 0


def lines_of(log: Path) -> Iterator[dict]:
    """The lines of a log, without those that are damaged; none where it cannot be read."""
    try:
        for _, line in _lines(log):
            yield parse_json(line)
    except OSError:
        return


def truncate_log(path: Path, step: int) -> list[int]:
    """Drop the lines of a JSONL log that lie after ``step``, and damaged ones, such as a line cut short by a crash.

    Returns:
        The steps up to ``step`` that it has no line of.
    """
    kept: dict[int, str] = {}
    if path.exists():
        for found, line in _lines(path):
            if found <= step:
                kept.setdefault(found, line)
        with written_whole(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept.values()), encoding="utf-8")
    return [number for number in range(1, step + 1) if number not in kept]


def _lines(log: Path) -> Iterator[tuple[int, str]]:
    """Steps and lines of a log, without those that are damaged."""
    whole = True  # what is read is the beginning of a line
    with open_regular(log, "r", encoding="utf-8", errors="replace") as stream:
        while text := stream.readline(LONGEST):
            begins, whole = whole, text.endswith("\n")
            line = text.rstrip("\n")
            if begins and (step := _step_of(line)) is not None:
                yield step, line


def _step_of(line: str) -> int | None:
    """The step that a line of the log tells of; ``None`` for a damaged line."""
    try:
        found = parse_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if type(found) is int else None
