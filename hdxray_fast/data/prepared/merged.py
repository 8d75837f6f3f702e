"""Whether a data set is merged already: a note of the files that were joined, and of those that came of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ...files import size_and_time, written_whole
from ...regular_files import RUN_JSON, read_json

NOTE = ".merged"
VERSION = 2  # of the note: raise it when merging gives something else for the same shards


class MergeNote:
    """Of a data set, as its shards are when this is made. A set that was copied may have other dates: it is merged
    once more.

    Args:
        out: folder of the data set.
        inputs: names of files beside the shards that a merge reads.
        outputs: names of those that it writes, or leaves out.
    """

    def __init__(self, out: Path, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        self.out, self.outputs = out, tuple(outputs)
        shards: list[str] = []
        with suppress(FileNotFoundError):  # the merge itself tells
            shards = sorted(name for name in os.listdir(out / "shards") if not name.startswith("."))
        told = json.dumps([_stamps(out / "shards", shards), _stamps(out, inputs)])
        self._shards = hashlib.sha256(told.encode()).hexdigest()

    def _content(self) -> dict:
        return {"version": VERSION, "shards": self._shards, "files": dict(_stamps(self.out, self.outputs))}

    def holds(self) -> bool:
        """Whether these very shards were merged, and all that came of it is as it was left."""
        try:
            return read_json(self.out / NOTE, RUN_JSON) == self._content()
        except (OSError, ValueError):
            return False

    def write(self) -> None:
        """Note that they are merged."""
        with written_whole(self.out / NOTE) as temporary:
            temporary.write_text(json.dumps(self._content()) + "\n", encoding="utf-8")


def _stamps(folder: Path, names: Iterable[str]) -> list[list]:
    """As JSON gives them back."""
    found = ((name, size_and_time(folder / name)) for name in names)
    return [[name, stamp and list(stamp)] for name, stamp in found]
