"""Which of many files a process takes: a part among parts (``--part 2/8``), a rank among ranks (torchrun)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..data.prepared.config import which_part
from ..data.reader_pool import worker_count
from ..ranks import from_main, launched, together

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """One of ``of`` shares of the files.

    Attributes:
        which: from 0.
        of: how many there are: parts times ranks.
        rank: of this process among those that one launcher started.
        ranks: how many these are.
    """

    which: int = 0
    of: int = 1
    rank: int = 0
    ranks: int = 1

    @classmethod
    def of_part(cls, part: str = "1/1") -> Share:
        """The share of this process: the part ``"i/n"`` (i from 1 to n), dealt out among the ranks of its launcher.

        Raises:
            ConfigError: ``part`` is not as described.
        """
        which, of = which_part(part)
        rank, ranks = int(os.environ.get("RANK", "0")), launched()
        return cls(which * ranks + rank, of * ranks, rank, ranks)

    def __str__(self) -> str:
        return f"{self.which + 1}-of-{self.of}"

    @property
    def is_main(self) -> bool:
        """Whether this process joins what its launcher's processes made, and speaks for them."""
        return self.rank == 0

    def take(self, files: Sequence[T], batch_size: int) -> list[T]:
        """The files of this share: every ``of``-th batch, so that batches, and what comes of them to the last bit, are
        those of one process that takes all."""
        batches = range(self.which * batch_size, len(files), self.of * batch_size)
        return [file for first in batches for file in files[first : first + batch_size]]

    def device(self, device: str | torch.device | None) -> str | torch.device | None:
        """``device``; left out, the rank's own GPU, if the launcher started several ranks here."""
        own = os.environ.get("LOCAL_RANK")
        if device is None and self.ranks > 1 and own is not None and torch.cuda.is_available():
            return f"cuda:{own}"
        return device

    def workers(self, workers: int) -> int:
        """As many as were asked for; -1: this rank's share of the cores."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.ranks > 1 else 1
        return workers if workers >= 0 else max(1, worker_count(-1) // here)

    def together(self) -> AbstractContextManager[None]:
        """As :func:`.ranks.together`: the ranks leave when all of them have done their share."""
        return together() if self.ranks > 1 else nullcontext()

    def from_main(self, work: Callable[[], T]) -> T:
        """As :func:`.ranks.from_main`: the main rank does it for all."""
        return from_main(work) if self.ranks > 1 else work()
