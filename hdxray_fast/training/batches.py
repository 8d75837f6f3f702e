"""Batches that nobody trains on: validation, test, and the features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .processes import loader_workers, one_opencv_thread, outlive_notice


def batches_of(
    dataset: Dataset,
    keys: Sequence[Sequence[Any]],
    workers: int,
    device: torch.device,
    collate_fn: Callable | None = None,
) -> Iterator[dict]:
    """Samples in the order of their keys, on the host; for a GPU they are read ahead, into page-locked memory.

    Args:
        dataset: maps a key to a sample.
        keys: of each batch.
        workers: processes that read for a GPU, as for :func:`.loader_workers`; the CPU reads for itself, since there
            the model wants every core.
        device: where the model is.
        collate_fn: samples to a batch; torch's by default.
    """
    on_gpu = device.type == "cuda"
    loader = DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=loader_workers(workers, on_gpu) if on_gpu else 0,
        pin_memory=on_gpu,
        collate_fn=collate_fn,
        worker_init_fn=outlive_notice,
    )
    with one_opencv_thread():
        batches = iter(loader)
    try:
        yield from batches
    finally:  # an error that nobody catches keeps the iterator alive, and its workers with it
        getattr(batches, "_shutdown_workers", lambda: None)()
