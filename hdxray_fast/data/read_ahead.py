"""The blocks of a shuffle in blocks: fetched, and brought into the page cache, before their images are asked for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..errors import HDXrayError
from ..regular_files import open_regular
from .order import BlockOrder
from .prepared.reading import PreparedSet, PreparedSubset
from .prepared.shard_files import read_at

PIECE = 8 << 20  # bytes of a read
Extent = tuple[Path, int, int]  # a file, and the first byte and the end of a part of it


class ReadAhead:
    """Reads parts of files in threads of its own, for their pages alone; what cannot be read is left to who needs it.

    The threads end when there is nothing to read, and never keep a process from ending.

    Args:
        bring: is given the path of each file first, and says whether it fetched it, and so has its pages.
        most: threads.
    """

    def __init__(self, bring: Callable[[Path], bool] = lambda path: False, most: int = 1) -> None:
        self._wanted: deque[Extent] = deque()
        self._bring, self._most = bring, most
        self._lock, self._threads = threading.Lock(), set()

    def want(self, extents: Iterable[Extent]) -> None:
        """Read these after those that are still wanted."""
        with self._lock:
            self._wanted.extend(extents)
            for _ in range(min(self._most, len(self._wanted)) - len(self._threads)):
                thread = threading.Thread(target=self._work, name="hdxray-read-ahead", daemon=True)
                self._threads.add(thread)
                thread.start()

    def wait(self) -> None:
        """Until all that was wanted is read."""
        for thread in list(self._threads):
            thread.join()

    def _work(self) -> None:
        buffer = np.empty(PIECE, np.uint8)
        while True:
            with self._lock:
                if not self._wanted:
                    self._threads.discard(threading.current_thread())
                    return
                extent = self._wanted.popleft()
            try:
                if not self._bring(extent[0]):
                    read_extent(*extent, buffer)
            except (OSError, HDXrayError):
                continue  # whoever reads the image names the file


def read_extent(path: Path, start: int, end: int, buffer: np.ndarray) -> None:
    """Read a part of a file, a buffer full at a time."""
    with open_regular(path) as stream:
        for place in range(start, end, len(buffer)):
            if not read_at(stream.fileno(), place, buffer[: end - place]):
                return


class BlocksAhead(BlockOrder):
    """A :class:`.BlockOrder` whose node reads the block that it is in, and the next one, ahead.

    Each process of a node reads its share.

    Args:
        images: of the data set, whose shards are read.
        seed, nodes, block: see :class:`.BlockOrder`.
        node: this process's.
        share: of its node's processes, which one this is, and how many there are.
    """

    def __init__(
        self,
        images: PreparedSet | PreparedSubset,
        seed: int,
        nodes: int,
        block: int,
        *,
        node: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(len(images), seed, nodes, block, images.run_starts())
        self.images, self.node, self.share = images, node, share
        self.reader = ReadAhead(images.bring, images.fetchers)
        self._now: tuple[int, int] | None = None
        self._asked: tuple[int, int] | None = None  # epoch and block
        self._runs: tuple[int, list[np.ndarray]] | None = None  # of the last epoch that was looked at

    def reached(self, position: int) -> None:
        epoch, place = divmod(position, self.length)
        turn = len(range(self.first(epoch, self.node), place, self.nodes))  # images of this node that lie behind
        ends = np.cumsum([len(rows) for rows in self._of(epoch)])
        now = epoch, min(int(np.searchsorted(ends, turn, "right")), len(ends) - 1)
        if now != self._now:  # it came while the one before was read: now that one is what makes room
            self._now = now
            self.images.touch(self._of(epoch)[now[1]])
        for block in (now, self._after(now)):
            if self._asked is None or block > self._asked:
                self._asked = block
                self.reader.want(self._extents(block))

    def _after(self, block: tuple[int, int]) -> tuple[int, int]:
        epoch, number = block
        return (epoch, number + 1) if number + 1 < len(self._of(epoch)) else (epoch + 1, 0)

    def _of(self, epoch: int) -> list[np.ndarray]:
        if self._runs is None or self._runs[0] != epoch:
            self._runs = epoch, self.runs(epoch, self.node)
        return self._runs[1]

    def _extents(self, block: tuple[int, int]) -> list[Extent]:
        """This process's share of the parts of shards that a block's images lie in."""
        rows = self.runs(block[0], self.node)[block[1]]
        which, of = self.share
        return self.images.extents(rows)[which::of]
