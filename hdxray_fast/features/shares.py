"""Which of many files a process takes: a part among parts (``--part 2/8``), a rank among ranks (torchrun)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ..data.prepared.config import which_part
from ..data.reader_pool import worker_count
from ..errors import TrainingError

PATIENCE = timedelta(days=1)  # of ranks that wait for a slower one; one that is gone is noticed at once

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
        rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
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

    def wait_for_ranks(self) -> None:
        """Until all ranks have come here; they find each other by what their launcher set, over gloo.

        Raises:
            TrainingError: one of them is gone.
        """
        if self.ranks == 1:
            return
        try:
            if dist.is_initialized():
                group = dist.new_group(backend="gloo", timeout=PATIENCE)
                try:
                    dist.barrier(group)
                finally:
                    dist.destroy_process_group(group)
                return
            dist.init_process_group("gloo", timeout=PATIENCE)
            try:
                dist.barrier()
            finally:
                dist.destroy_process_group()
        except (RuntimeError, ValueError) as error:
            first = (str(error).strip().splitlines() or [""])[0][:300]
            raise TrainingError(
                f"another of the {self.ranks} processes is gone ({first}); its own output says why. What is done is "
                "kept: start all of them again"
            ) from error
