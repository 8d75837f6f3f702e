"""Whether a data set is merged already: a note of the shards that were joined, and of the files that came of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ...files import written_whole
from .shards import ShardFolder

NOTE = ".merged"
VERSION = 1  # of the note: raise it when merging gives something else for the same shards


class MergeNote:
    """Of a data set, as its shards are when this is made. A set that was copied may have other dates: it is merged
    once more.

    Args:
        out: folder of the data set.
        inputs: names of files beside the shards that a merge reads.
        outputs: names of those that it writes.
    """

    def __init__(self, out: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self.out, self.outputs = out, outputs
        stamps = sorted(ShardFolder(out / "shards").stamps().items())
        told = json.dumps([stamps, [_stamp(out / name) for name in inputs]])
        self._shards = hashlib.sha256(told.encode()).hexdigest()

    def _content(self) -> dict:
        files = {name: _stamp(self.out / name) for name in self.outputs}
        return {"version": VERSION, "shards": self._shards, "files": files}

    def holds(self) -> bool:
        """Whether these very shards were merged, and all that came of it is as it was left."""
        try:
            found = json.loads((self.out / NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        content = self._content()
        return found == content and None not in content["files"].values()

    def write(self) -> None:
        """Note that they are merged."""
        with written_whole(self.out / NOTE) as temporary:
            temporary.write_text(json.dumps(self._content()) + "\n", encoding="utf-8")


def _stamp(path: Path) -> list[int] | None:
    """Length in bytes and date in nanoseconds; none if it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
