"""What the log of a run tells of it, a line of JSON per step."""

from __future__ import annotations

from pathlib import Path

from ..regular_files import open_regular, parse_json

LONGEST = 1 << 16  # characters of a line; a file without line ends is no log


def last_step(log: Path) -> int:
    """The last step that ``log.jsonl`` has a line of; 0 where it has none, or cannot be read."""
    last = 0
    try:
        with open_regular(log, "r", encoding="utf-8", errors="replace") as stream:
            while line := stream.readline(LONGEST):
                try:
                    step = parse_json(line)["step"]
                except (ValueError, KeyError, TypeError):
                    continue
                if type(step) is int:
                    last = max(last, step)
    except OSError:
        return 0
    return last
