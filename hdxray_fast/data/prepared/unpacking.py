"""Compressed tars to files that readers can be given, unpacked by a worker with the caps of the reader pool."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path

from ...errors import ImageReadError, ImageTooLargeError
from ...images.canvas import Limits
from ..reader_pool import MAX_MEMORY, TIMEOUT, Failed, Longer, call_in_order, out_of_memory
from .archive_lists import archive_timeout
from .archives import Member, close_stream, member_bytes
from .sources import Source

MAX_SCRATCH = 4096  # MiB that unpacked files may take up while they wait for their readers


class Unpacker:
    """Unpacks members of compressed tars in their order, each into a file of its own that readers can be given.

    A reader that wanted one from the middle would have to unpack all before it, so a worker of its own goes through
    such archives once.

    Args:
        folder: for the files; emptied first, and removed by :meth:`close`.
        workers: 0 unpacks in this process, without caps on time and memory.
        timeout: seconds for each begun 256 MiB of the archive.
        max_memory: MiB that unpacking may take.
        max_scratch: MiB that files which are not yet :meth:`released <release>` may take up.
        max_bytes: of a member.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 1,
        timeout: float = TIMEOUT,
        max_memory: int = MAX_MEMORY,
        max_scratch: int = MAX_SCRATCH,
        max_bytes: int = Limits().max_bytes,
    ) -> None:
        self.folder, self.timeout = folder, timeout
        self.max_scratch = max_scratch << 20
        self.max_bytes = min(max_bytes, self.max_scratch)
        self._held: dict[Path, int] = {}  # bytes set aside for each file
        self._count = 0
        self._given_up: dict[str, Failed] = {}  # archives that took a worker too long, or too much
        self._asked: deque[Longer] = deque()  # one at most: each is answered before the next
        self._answers = call_in_order(
            unpack_member, iter(self._asked.popleft, None), workers=min(workers, 1), max_memory=max_memory, ahead=1,
            others=workers,
        )  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)

    def has_room(self, source: Source) -> bool:
        """Whether a member can be unpacked now; it always can when there is no other."""
        return not self._held or sum(self._held.values()) + self._room(source) <= self.max_scratch

    def fetch(self, source: Source) -> Path | Failed:
        """A file with the member's bytes, to be :meth:`released <release>` once it is read; or what came in between.

        Raises:
            OSError: the file cannot be written.
        """
        if source.path in self._given_up:
            return self._given_up[source.path]
        if source.size > self.max_bytes:
            return Failed(
                ImageTooLargeError.__name__, f"declares {source.size} bytes; accepted: up to {self.max_bytes}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / str(self._count)
        self._count += 1
        self._held[path] = self._room(source)
        self._asked.append(
            Longer((source, str(path), self._held[path]), archive_timeout(source.path, self.timeout)),
        )
        answer = next(self._answers)
        if answer is None:
            self._held[path] = path.stat().st_size
            return path
        self.release(path)
        if isinstance(answer, ImageReadError):
            return Failed(type(answer).__name__, answer.reason)
        self._given_up[source.path] = answer  # its other members would take as long
        return answer

    def _room(self, source: Source) -> int:
        return source.size if source.size >= 0 else self.max_bytes

    def release(self, path: Path) -> None:
        """Remove a file."""
        path.unlink(missing_ok=True)
        self._held.pop(path, None)

    def close(self) -> None:
        """End the worker and remove all files."""
        self._answers.close()
        close_stream()
        shutil.rmtree(self.folder, ignore_errors=True)


def unpack_member(source: Source, path: str, max_bytes: int) -> ImageReadError | Failed | None:
    """Write a member to ``path``; gives back what is wrong with it, since what is raised ends the run.

    Raises:
        OSError: ``path`` cannot be written.
    """
    member = Member(source.member, source.offset, source.size)
    with open(path, "wb") as out:
        try:
            for data in member_bytes(source.path, member, source.name, max_bytes):
                out.write(data)
        except ImageReadError as error:
            return error
        except MemoryError:
            return out_of_memory()
    return None
